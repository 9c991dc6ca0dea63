"""Output of `inspect`: data for JSON, and the same information as rows for the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from eomt_deploy.backends.registry import choose_backend
from eomt_deploy.certificate import UNCHECKED, Certificate
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.spec import ModelSpec
from eomt_deploy.units import counted

SHOWN_CLASSES = 12


class Inspection(NamedTuple):
    """Information about one model file."""

    data: dict[str, Any]
    rows: dict[str, str]


def model_rows(spec: ModelSpec) -> dict[str, str]:
    """Rows from the model description, which every model file contains."""
    backbone = spec.backbone
    names = [c.name + ("*" if c.thing else "") for c in spec.classes]
    rest = len(names) - SHOWN_CLASSES
    thresholds = spec.thresholds
    return {
        "model": spec.name,
        "task": spec.task,
        "input size": f"{spec.image_size[0]}x{spec.image_size[1]} ({spec.resize})",
        "batch": str(spec.batch or "dynamic"),
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
    }  # fmt: skip


def origin_rows(spec: ModelSpec) -> dict[str, str]:
    """Rows on the origin of the model."""
    return {key.replace("_", " "): value for key, value in spec.provenance.items()}


def certificate_rows(certificate: Certificate | None, *, belongs: bool = True) -> dict[str, str]:
    """Row with the certificate of a built file.

    Args:
        belongs: whether it was made with the weights that the file has now.
    """
    if not belongs:
        return {"certificate": "invalid: the weights have changed since the comparison"}
    if certificate is None:
        return {"certificate": f"unchecked. {UNCHECKED}"}
    return {
        "certificate": f"{certificate}, on {counted(certificate.images, 'image')}\n"
        f"{certificate.place}, {certificate.created}"
    }


def remark_rows(remarks: tuple[str, ...]) -> dict[str, str]:
    """Row with the remarks that opening the file would give."""
    return {"remarks": "\n".join(remarks)} if remarks else {}


def backend_here(path: Path) -> str:
    """The backend that is selected on this machine, or how to install one."""
    try:
        return choose_backend(path, None)
    except MissingDependencyError as error:
        return f"nothing; {error.fix}"
