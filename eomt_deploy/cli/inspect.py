"""`eomt-deploy inspect`: what an exported file says of itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from eomt_deploy.artifact import TensorInfo, read_artifact
from eomt_deploy.cli.console import print_json, stdout

SHOWN_CLASSES = 12
SHOWN_OPERATORS = 8


def inspect(
    artifact: Annotated[Path, typer.Argument(help="A file that eomt-deploy wrote.")],
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show task, classes, sizes, precision and origin of an exported model."""
    facts = read_artifact(artifact)
    spec = facts.spec
    if json:
        data = asdict(facts)
        data["path"] = str(facts.path)
        print_json(data)
        return
    backbone = spec.backbone
    names = [c.name + ("*" if c.thing else "") for c in spec.classes]
    rest = len(names) - SHOWN_CLASSES
    thresholds = spec.thresholds
    operators = [f"{count} {name}" for name, count in facts.operators.items()]
    rows = {
        "model": spec.name,
        "task": spec.task,
        "input size": f"{spec.image_size[0]}x{spec.image_size[1]} ({spec.resize})",
        "batch": str(spec.batch or "free"),
        "precision": spec.precision,
        "backbone": f"{backbone.family}, {backbone.width} wide, {backbone.depth} blocks, "
        f"{backbone.heads} heads, {backbone.mlp}, {backbone.registers} registers, patch "
        f"{spec.patch_size}",
        "parameters": f"{backbone.parameters / 1e6:.1f} M",
        "queries": f"{spec.num_queries}, in the last {spec.num_blocks} blocks",
        "classes": f"{len(names)} (* thing): " + ", ".join(names[:SHOWN_CLASSES])
        + (f", and {rest} more" if rest > 0 else ""),
        "thresholds": f"score {thresholds.score:g}, mask {thresholds.mask:g}, "
        f"overlap {thresholds.overlap:g}" if spec.task == "panoptic" else
        f"score {thresholds.score:g}" if spec.task == "instance" else "none",
        **{f"in  {t.name}": _shape(t) for t in facts.inputs},
        **{f"out {t.name}": _shape(t) for t in facts.outputs},
        "graph": f"opset {facts.opset}, {sum(facts.operators.values())} operators: "
        + ", ".join(operators[:SHOWN_OPERATORS]) + (", …" if len(operators) > SHOWN_OPERATORS else ""),  # noqa: E501
        "file": f"{facts.bytes / 1e6:.1f} MB",
        **{key.replace("_", " "): value for key, value in spec.provenance.items()},
    }  # fmt: skip
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    stdout.print(table)


def _shape(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
