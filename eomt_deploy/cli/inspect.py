"""`eomt-deploy inspect`: the description stored in a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.inspection import Inspection
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.cli.console import print_json, stdout
from eomt_deploy.cli.options import SITE_INDEX
from eomt_deploy.errors import ModelFileError
from eomt_deploy.model_file import CORE_ML_SUFFIX


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model file or site that eomt-deploy wrote.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show task, classes, sizes, precision and origin of a model file."""
    data, rows = describe(model)
    if json:
        print_json(data)
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    stdout.print(table)


def describe(path: Path) -> Inspection:
    """The facts of a model file, from the first backend that describes its format.

    Raises:
        ModelFileError: no backend knows the suffix, or the file is damaged.
    """
    if path.is_dir() and path.suffix.lower() != CORE_ML_SUFFIX:
        path /= SITE_INDEX
    suffix = path.suffix.lower()
    for backend in BACKENDS.values():
        built = [backend.build.suffix] if backend.build else []
        if backend.inspect and suffix in (*backend.suffixes, *built):
            found: Inspection = load(backend.inspect)(path)
            return found
    known = sorted({s for backend in BACKENDS.values() for s in backend.suffixes})
    raise ModelFileError(
        f"{path} is not a model file: its suffix is {suffix or 'missing'}.",
        fix=f"Pass a file with one of these suffixes: {', '.join(known)}.",
    )
