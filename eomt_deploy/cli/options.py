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
