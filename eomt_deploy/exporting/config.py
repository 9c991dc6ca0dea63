"""What the user may ask of an export. Imports no torch, so that mistakes are told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from eomt_deploy.errors import UsageError
from eomt_deploy.spec import Task

PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class ExportConfig:
    """One export.

    Attributes:
        checkpoint: file, Hugging Face folder, ``hf://owner/name`` or a catalog name.
        output: the ``.onnx`` file to write.
        task: needed where the catalog does not tell.
        classes: JSON class list; needed where neither catalog nor checkpoint tells.
        size: network input (H, W); None takes the trained size.
        native_size: trained (H, W), where the checkpoint cannot tell.
        name: catalog entry that the checkpoint belongs to.
        heads: attention heads, where they are not width / 64.
        num_blocks: blocks that see the queries, where the checkpoint does not tell.
        batch: fixed batch size; None leaves it free.
        precision: arithmetic of the graph.
        allow_unannealed: export although masked attention was not annealed away.
        verify_images: photos to verify on; None takes the ones that come with the package.
    """

    checkpoint: str
    output: Path
    task: Task | None = None
    classes: Path | None = None
    size: tuple[int, int] | None = None
    native_size: tuple[int, int] | None = None
    name: str | None = None
    heads: int | None = None
    num_blocks: int | None = None
    batch: int | None = None
    precision: str = "fp32"
    allow_unannealed: bool = False
    verify_images: Path | None = None

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".onnx":
            raise UsageError(
                f"{self.output} has the suffix {self.output.suffix or '(none)'}; the suffix "
                "decides the format, and this version writes .onnx.",
                fix=f"Use -o {self.output.with_suffix('.onnx')}.",
            )
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"Precision {self.precision!r} is unknown.", fix=f"Known: {', '.join(PRECISIONS)}."
            )
        if self.task is not None and self.task not in get_args(Task):
            raise UsageError(
                f"Task {self.task!r} is unknown.", fix=f"Known: {', '.join(get_args(Task))}."
            )
        for name in ("batch", "heads", "num_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be 1 or more.")
