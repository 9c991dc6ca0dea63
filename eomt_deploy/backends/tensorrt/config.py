"""Configuration of a build. Does not import TensorRT, so that errors appear at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.backends.building import BuildConfig, check_suffix, one_of, option
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.sidecar import TARGETS, Target, sidecar_path
from eomt_deploy.units import parse_bytes

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

SUFFIX = ".engine"
DEFAULT_BATCH = (1, 1, 8)
"""(minimum, optimal, maximum) batch size of a dynamic-batch model."""
MAX_LEVEL = 5
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX can build for; Hopper, a data-centre GPU, is not one."""

# Setting of one target only -> the reason why the other target does not have it.
TENSORRT_ONLY = {
    "optimization_level": "it selects its kernels when an engine is loaded, not during the build",
    "timing_cache": "it does not time kernels during the build",
    "version_compatible": "it has no lean runtime",
    "hardware_compatibility": "its engines are not limited to one GPU, use --compute-capability",
}
RTX_ONLY = {
    "compute_capabilities": "it times kernels on the GPU of this machine and builds for this GPU, "
    "use --hardware-compatible for other ones",
}


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(BuildConfig):
    """Configuration of one build of an ``.engine`` file; ``<output>.json`` is written beside it.

    None and False keep the default of the library.

    Attributes:
        target: ``tensorrt`` builds for the GPU of this machine; ``tensorrt-rtx`` needs no GPU.
        batch: (minimum, optimal, maximum) batch size of a dynamic-batch model; None means 1, 1, 8.
        workspace: maximum workspace memory on the GPU, in bytes.
        optimization_level: 0 (fastest build) to 5 (longest search). TensorRT only.
        tf32: allow TF32 for FP32 matrix multiplications: inputs are rounded to 10 mantissa bits,
            which is faster and less accurate.
        strip_weights: build the engine without weights; they are loaded from the ONNX file.
        version_compatible: the engine also runs with later versions of TensorRT. TensorRT only.
        hardware_compatibility: other GPUs that the engine must run on. TensorRT only.
        timing_cache: file with kernel timings that speeds up later builds; None uses the file in
            the user's cache folder. TensorRT only.
        compute_capabilities: compute capabilities to build for, e.g. "8.9"; empty means 8.0 and
            all later ones. TensorRT-RTX only.
        expect_precision: precision that the engine must compute in; None means the precision of
            the model.
    """

    target: Target = "tensorrt"
    compute_capabilities: tuple[str, ...] = option(
        (),
        "Compute capability to build for, e.g. 8.9; can be repeated (default: 8.0 and later). "
        "TensorRT-RTX only.",
        list[str],
        flag="--compute-capability",
        parse=tuple,
    )
    batch: tuple[int, int, int] | None = option(
        None,
        "MIN:OPT:MAX batch size of a dynamic-batch model (default: 1:1:8).",
        parse=lambda text: parse_batch(text),
    )
    workspace: int | None = option(
        None,
        "Maximum workspace memory, e.g. 4GiB (default: TensorRT's).",
        parse=lambda text: parse_bytes(text),
    )
    optimization_level: int | None = option(
        None,
        "Optimization level, 0 (fastest build) to 5 (longest search) (default: TensorRT's). "
        "TensorRT only.",
        int,
    )
    tf32: bool = option(False, "Allow TF32 for FP32 matrix multiplications (default: off).", bool)
    strip_weights: bool = option(
        False,
        "Build the engine without weights; they are loaded from the ONNX file beside it.",
        bool,
    )
    version_compatible: bool = option(
        False,
        "Build an engine that also runs with later versions of TensorRT. TensorRT only.",
        bool,
    )
    hardware_compatibility: HardwareCompatibility = option(
        "none",
        "Other GPUs to run on: none, ampere-plus or same-compute-capability (default: none). "
        "TensorRT only.",
        flag="--hardware-compatible",
        parse=lambda text: text.replace("-", "_"),
    )
    timing_cache: Path | None = option(
        None,
        "Timing cache file, which speeds up later builds (default: in the user's cache folder). "
        "TensorRT only.",
        Path,
    )
    expect_precision: str | None = option(
        None, "Fail unless the engine computes in this precision (default: the model's)."
    )

    def __post_init__(self) -> None:
        check_suffix(self.output, SUFFIX, "an engine")
        one_of("--target", self.target, TARGETS)
        one_of(
            "--hardware-compatible", self.hardware_compatibility, get_args(HardwareCompatibility)
        )
        if self.expect_precision is not None:
            one_of("--expect-precision", self.expect_precision, tuple(PRECISIONS))
        self._check_target()
        if self.batch is not None:
            minimum, optimal, largest = self.batch
            if not 1 <= minimum <= optimal <= largest:
                raise UsageError(
                    f"--batch must be three ascending numbers from 1, got "
                    f"{minimum}:{optimal}:{largest}.",
                    fix="Write --batch MIN:OPT:MAX, e.g. --batch 1:1:8.",
                )
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(
                f"--workspace must be at least 1 byte, got {self.workspace}.",
                fix="Pass a size such as 4GiB, or leave it out for TensorRT's default.",
            )
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_LEVEL:
            raise UsageError(
                f"--optimization-level must be 0 to {MAX_LEVEL}, got {level}.",
                fix="Pass a level in this range, or leave it out for TensorRT's default.",
            )
        for capability in self.compute_capabilities:
            one_of("--compute-capability", capability, RTX_CAPABILITIES)
        if self.timing_cache is not None:
            real = os.path.realpath(self.timing_cache)
            if real in (os.path.realpath(f) for f in (self.onnx, self.output)):
                raise UsageError(
                    f"--timing-cache {self.timing_cache} is also the model or the output.",
                    fix="Use a different file.",
                )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise UsageError(
                f"A compute capability is given twice: {', '.join(self.compute_capabilities)}.",
                fix="Pass each compute capability once.",
            )

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages."""
        return {"The engine": self.output, "The engine's description": sidecar_path(self.output)}

    def _check_target(self) -> None:
        knobs = RTX_ONLY if self.target == "tensorrt" else TENSORRT_ONLY
        for name, why in knobs.items():
            if getattr(self, name) != getattr(type(self), name):
                flag = self.options()[name].flag
                raise UsageError(
                    f"{flag} does not apply to --target {self.target}.",
                    why=f"{self.target}: {why}.",
                    fix=f"Leave {flag} out, or use the other target.",
                )


def parse_batch(text: str) -> tuple[int, int, int]:
    """Parse ``1:1:8`` to (minimum, optimal, maximum).

    Raises:
        UsageError: the text is not three numbers.
    """
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,6})", text.strip())
    if match is None:
        raise UsageError(
            f"--batch must be three numbers MIN:OPT:MAX, got {text!r}.",
            fix="Write, for example, --batch 1:1:8.",
        )
    return int(match[1]), int(match[2]), int(match[3])
