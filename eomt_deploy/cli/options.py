"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Maximum pixels of an image, checked before it is decoded (default: 100000000)."
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace existing files that eomt-deploy did not write; an input is never replaced.",
    ),
]
