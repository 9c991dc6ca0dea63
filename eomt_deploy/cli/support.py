"""`eomt-deploy doctor --matrix`: what this machine can build and run, and the trial of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import typer
from rich.table import Table

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.cli.console import print_json, say, stdout, timed_steps
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.support.matrix import Cell, Finding, prospect

EXPORT = ("torch", "onnxscript")
"""Packages that write the small networks."""
INSTALL = "pip install 'eomt-deploy[cpu,export]'"


def show_matrix(wanted: Sequence[Cell], json: bool) -> None:
    """Print what this machine can verify and build; nothing is tried."""
    if json:
        print_json([
            {"family": cell.family, "task": cell.task, "precision": cell.precision,
             "backend": cell.backend, **prospect(cell.backend, cell.precision)._asdict()}
            for cell in wanted
        ])  # fmt: skip
        return
    table = Table("backend", *PRECISIONS, "reason")
    for name in sorted({cell.backend for cell in wanted}, key=list(BACKENDS).index):
        found = [prospect(name, precision) for precision in PRECISIONS]
        reasons = dict.fromkeys(one.reason for one in found if one.status != "not possible")
        table.add_row(name, *(one.status for one in found), "; ".join(filter(None, reasons)))
    stdout.print(table)
    families = ", ".join(dict.fromkeys(cell.family for cell in wanted))
    say(f"Families: {families}; each with the tasks semantic, instance and panoptic.")
    say("`eomt-deploy doctor --matrix --run` builds and runs what is possible here.")
    if missing := [package for package in EXPORT if find_spec(package) is None]:
        say(f"It needs {' and '.join(missing)}: {INSTALL}")


def try_matrix(wanted: Sequence[Cell], json: bool) -> None:
    """Try combinations, and print what happened.

    Raises:
        MissingDependencyError: the export is not installed.
        typer.Exit: with code 4 if a combination failed.
    """
    try:
        from eomt_deploy.support.trial import try_cells
    except ImportError as error:
        raise MissingDependencyError(
            f"--run needs a package that is not installed: {error.name or error}.",
            why="It exports small networks.",
            fix=INSTALL,
        ) from error
    with timed_steps() as progress:
        found: list[Finding] = []
        for finding in try_cells(wanted, lambda cell: progress(
            f"{cell.family} {cell.task} {cell.precision} with {cell.backend}",
            len(found) / len(wanted),
        )):  # fmt: skip
            found.append(finding)
    if json:
        print_json([finding.to_dict() for finding in found])
    else:
        table = Table("backend", "family", "task", "precision", "result", "logit error or reason")
        for one in sorted(found, key=lambda one: list(BACKENDS).index(one.cell.backend)):
            cell = one.cell
            table.add_row(
                cell.backend, cell.family, cell.task, cell.precision, one.status, one.text
            )
        stdout.print(table)
    if any(finding.status == "failed" for finding in found):
        raise typer.Exit(4)
