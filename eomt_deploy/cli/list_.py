"""`eomt-deploy list`: the catalog of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from eomt_deploy import catalog, licences
from eomt_deploy.cli.console import print_json, say, stdout
from eomt_deploy.errors import UsageError

NEEDED = {"size": 100, "params": 100, "backbone": 130, "FPS": 130}
"""Columns that a narrower terminal leaves out; `--json` has them."""


def list_checkpoints(
    task: Annotated[
        str | None, typer.Option(help="Only this task: semantic, instance or panoptic.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Only this data set, e.g. Cityscapes.")
    ] = None,
    max_params: Annotated[
        float | None, typer.Option(help="Maximum number of parameters, in millions, e.g. 100.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the checkpoints that can be exported by name."""
    known = catalog.checkpoints().values()
    _check("task", task, {entry.task for entry in known})
    _check("dataset", dataset, {entry.dataset.lower() for entry in known})
    entries = [
        entry
        for entry in known
        if (task is None or entry.task == task)
        and (dataset is None or entry.dataset.lower() == dataset.lower())
        and (max_params is None or entry.parameters <= 1e6 * max_params)
    ]
    if json:
        print_json([asdict(entry) | {"licences": entry.licences} for entry in entries])
        return
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for column in ("task", "size", "backbone", "params", "score", "FPS", "licence"):
        if stdout.width >= NEEDED.get(column, 0):
            table.add_column(column, overflow="fold")
    for entry in entries:
        published = entry.published
        fps = f"{published.fps:g} ({published.device})" if published and published.fps else ""
        cells = {
            "name": entry.name + (" *" if entry.base_weights else ""),
            "task": entry.task,
            "size": "x".join(map(str, dict.fromkeys(entry.size))),  # 640 is 640x640
            "backbone": entry.backbone,
            "params": f"{entry.parameters / 1e6:.0f}M",
            "score": f"{published.score:g} {published.metric}" if published else "",
            "FPS": fps,
            "licence": licences.short(entry.licences),
        }
        table.add_row(*(cells[str(column.header)] for column in table.columns))
    stdout.print(table)
    say("")
    if any(entry.base_weights for entry in entries):
        say("* adds to gated DINOv3 weights: download them and pass --base-weights FOLDER")
    for name, link in licences.LINKS.items():
        if any(name in part for entry in entries for part in entry.licences):
            say(f"{licences.short([name])}: {licences.KINDS[name]}; read {link}")
    say(
        "Scores and FPS are as published, FPS with its GPU. Export a checkpoint with: "
        "eomt-deploy export NAME -o model.onnx"
    )


def _check(option: str, value: str | None, known: set[str]) -> None:
    if value is not None and value.lower() not in known:
        raise UsageError(
            f"No checkpoint has the {option} {value!r}.", fix=f"Known: {', '.join(sorted(known))}."
        )
