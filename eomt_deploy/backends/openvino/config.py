"""The settings of a conversion. Imports no OpenVINO, so that mistakes are reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.building import BuildConfig, check_suffix, one_of, option

XML = ".xml"
"""The suffix of OpenVINO's models; the weights are in the .bin beside."""
ARITHMETICS = ("auto", "f32", "bf16", "f16")


@dataclass(frozen=True, kw_only=True)
class OpenVinoConfig(BuildConfig):
    """One conversion to an ``.xml`` file; the weights go into the ``.bin`` beside it.

    Attributes:
        arithmetic: what the unquantised part computes in; ``auto`` takes BF16 for an FP32 or INT8
            model if it is faster on this machine and keeps 99.5% of the labels.
        images: image or folder to compare them on; None takes those of the package.
    """

    arithmetic: str = option(
        "auto",
        "auto, f32, bf16 or f16: arithmetic of what is not quantised. auto takes BF16 if it is "
        "faster on this machine and keeps 99.5% of the labels (default: auto).",
    )
    images: Path | None = option(None, "Image or folder used to compare BF16 with FP32.", Path)

    def __post_init__(self) -> None:
        check_suffix(self.output, XML, "a model of OpenVINO")
        one_of("--arithmetic", self.arithmetic, ARITHMETICS)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read, and never replaced."""
        return (*super().inputs, *([self.images] if self.images else []))

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by what they are called in messages."""
        return {"-o": self.output, "The weights file": self.output.with_suffix(".bin")}
