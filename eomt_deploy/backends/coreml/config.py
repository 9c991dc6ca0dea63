"""Configuration of a build. Does not import coremltools, so that errors appear at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.building import BuildConfig, check_suffix, one_of, option
from eomt_deploy.model_file import CORE_ML_MODEL, CORE_ML_SUFFIX

PRECISIONS = ("fp32", "fp16")
"""Precisions of the models that are built: Core ML has neither BF16 nor FP8."""
PALETTE_BITS = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of each weight that refers to a palette."""
WEIGHTS = ("model", "int8", *PALETTE_BITS)


@dataclass(frozen=True, kw_only=True)
class CoreMlConfig(BuildConfig):
    """Configuration of one build of an ``.mlpackage``, which is a folder.

    Attributes:
        weights: how the matrices of the linear layers are stored: ``model`` (in the precision of
            the model), ``int8`` (one scale per output channel), or ``palette8``, ``palette6`` or
            ``palette4`` (indices into tables of 256, 64 or 16 values). They are converted to the
            precision of the model before they are used, so the arithmetic stays the same.
    """

    weights: str = option(
        "model",
        "Weights of the linear layers: model (the precision of the model), int8, palette8, "
        "palette6 or palette4 (default: model).",
    )

    def __post_init__(self) -> None:
        check_suffix(self.output, CORE_ML_SUFFIX, "a Core ML package")
        one_of("--weights", self.weights, WEIGHTS)

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages. The file with the description is in
        the package and shows whether we wrote it."""
        return {"-o": self.output / CORE_ML_MODEL}
