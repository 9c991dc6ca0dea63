"""`eomt-deploy doctor --matrix`: every combination that this machine can build and run."""

from __future__ import annotations

import typer
from rich.table import Table

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.cli.console import print_json, stdout, timed_steps
from eomt_deploy.errors import MissingDependencyError


def show_matrix(json: bool) -> None:
    """Try all combinations, and print them.

    Raises:
        MissingDependencyError: the export is not installed.
        typer.Exit: with code 4 if a combination failed.
    """
    try:
        from eomt_deploy.support.matrix import cells, try_cells
    except ImportError as error:
        raise MissingDependencyError(
            f"The matrix needs a package that is not installed: {error.name or error}.",
            why="It exports small networks.",
            fix="pip install 'eomt-deploy[cpu,export]'",
        ) from error
    wanted = list(cells())
    with timed_steps() as progress:
        found = []
        for finding in try_cells(wanted, lambda cell: progress(
            f"{cell.family} {cell.task} {cell.precision} with {cell.backend}",
            wanted.index(cell) / len(wanted),
        )):  # fmt: skip
            found.append(finding)
    if json:
        print_json([finding.to_dict() for finding in found])
    else:
        table = Table("backend", "family", "task", "precision", "result", "largest logit error")
        for one in sorted(found, key=lambda one: list(BACKENDS).index(one.cell.backend)):
            cell = one.cell
            table.add_row(
                cell.backend, cell.family, cell.task, cell.precision, one.status, one.detail
            )
        stdout.print(table)
    if any(finding.status == "failed" for finding in found):
        raise typer.Exit(4)
