"""`eomt-deploy list`: the catalog of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from eomt_deploy import catalog
from eomt_deploy.cli.console import print_json, stdout


def list_checkpoints(
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the checkpoints that can be exported by name."""
    entries = [
        entry
        for entry in catalog.checkpoints().values()
        if (task is None or entry.task == task)
        and (dataset is None or entry.dataset.lower() == dataset.lower())
    ]
    if json:
        print_json([asdict(entry) for entry in entries])
        return
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for column in ("task", "size", "backbone", "params", "score", "FPS"):
        table.add_column(column)
    for entry in entries:
        published = entry.published
        fps = f"{published.fps:g} ({published.device})" if published and published.fps else ""
        table.add_row(
            entry.name,
            entry.task,
            f"{entry.size[0]}x{entry.size[1]}",
            entry.backbone,
            f"{entry.parameters / 1e6:.0f}M",
            f"{published.score:g} {published.metric}" if published else "",
            fps,
        )
    stdout.print(table)
    stdout.print(
        "\nScores and FPS are the published ones, each with its GPU. Export one with: "
        "eomt-deploy export NAME -o model.onnx",
        markup=False,
        soft_wrap=True,
    )
