"""Configuration of a build. Does not import ExecuTorch, so that errors appear at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.building import BuildConfig, check_suffix, one_of, option
from eomt_deploy.errors import UsageError
from eomt_deploy.sidecar import sidecar_path
from eomt_deploy.spec import MAX_BATCH

PTE = ".pte"
"""Suffix of ExecuTorch programs; the description is in a .json file in the same folder."""
TARGET = "executorch"
"""Name of the backend in the description."""
PARTITIONERS = ("xnnpack", "coreml", "qnn")
PRECISIONS = ("fp32",)
"""Precisions of the models that are built: see docs/backends/executorch.md for the reasons."""


@dataclass(frozen=True, kw_only=True)
class ExecuTorchConfig(BuildConfig):
    """Configuration of one build of a ``.pte`` file; its description is written to the ``.json``
    file beside it.

    Attributes:
        partitioner: what runs the network on the device: ``xnnpack`` (CPU), ``coreml`` (Apple) or
            ``qnn`` (Qualcomm).
        fixed_batch: batch size of the program.
        soc: Qualcomm chip, for ``qnn`` only.
        rewrite: write the network in operators that XNNPACK has; only for measurements.
    """

    partitioner: str = option(
        "xnnpack",
        "Delegate that runs the network: xnnpack (CPU), coreml (Apple) or qnn (Qualcomm) "
        "(default: xnnpack).",
    )
    fixed_batch: int | None = option(
        None, "Fixed batch size (default: that of the model, or 1).", int
    )
    soc: str | None = option(None, "Qualcomm chip for --partitioner qnn, e.g. SM8650.")
    rewrite: bool = True

    def __post_init__(self) -> None:
        check_suffix(self.output, PTE, "an ExecuTorch program")
        one_of("--partitioner", self.partitioner, PARTITIONERS)
        if self.fixed_batch is not None and not 1 <= self.fixed_batch <= MAX_BATCH:
            raise UsageError(
                f"--fixed-batch must be 1 to {MAX_BATCH}, got {self.fixed_batch}.",
                fix="Leave it out for one image per call.",
            )
        if (self.partitioner == "qnn") != (self.soc is not None):
            raise UsageError(
                "--partitioner qnn needs --soc, and --soc applies to qnn only.",
                why="A QNN program is compiled for one Qualcomm chip.",
                fix="Name the chip, e.g. --partitioner qnn --soc SM8650.",
            )

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages."""
        return {"-o": self.output, "The description": sidecar_path(self.output)}
