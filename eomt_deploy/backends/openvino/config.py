"""Configuration of a conversion. Does not import OpenVINO, so that errors appear at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.building import BuildConfig, check_suffix, one_of, option

XML = ".xml"
"""Suffix of OpenVINO models; the weights are in a .bin file in the same folder."""
ARITHMETICS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class OpenVinoConfig(BuildConfig):
    """Configuration of one conversion to an ``.xml`` file; the weights are written to the ``.bin``
    file beside it.

    Attributes:
        arithmetic: what the unquantised layers compute in; ``auto`` selects BF16 for an FP32 or
            INT8 model if it is faster on this machine and keeps 99.5% of the labels.
    """

    arithmetic: str = option(
        "auto",
        "Arithmetic of the layers that are not quantised: auto, fp32, bf16 or fp16. auto selects "
        "BF16 if it is faster on this machine and keeps 99.5% of the labels (default: auto).",
    )

    def __post_init__(self) -> None:
        check_suffix(self.output, XML, "an OpenVINO model")
        one_of("--arithmetic", self.arithmetic, ARITHMETICS)

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages."""
        return {"-o": self.output, "The weights file": self.output.with_suffix(".bin")}
