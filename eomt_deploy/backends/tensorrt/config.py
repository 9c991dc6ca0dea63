"""The settings of a build. Imports no TensorRT, so that mistakes are reported at once."""

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
"""(minimum, optimal, maximum) batch of a model with a dynamic batch."""
MAX_LEVEL = 5
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""GPUs that TensorRT-RTX can build for without having one; data-centre Hopper is not among them."""

# Settings of one target only -> why the other has none.
TENSORRT_ONLY = {
    "optimization_level": "it chooses its kernels when an engine is loaded, not while it is built",
    "timing_cache": "it times nothing while it builds",
    "version_compatible": "it has no lean run-time",
    "hardware_compatibility": "its engines are not bound to one GPU: see --compute-capability",
}
RTX_ONLY = {
    "compute_capabilities": "it times kernels on the GPU of this machine and builds for that one: "
    "see --hardware-compatible",
}


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(BuildConfig):
    """One build of an ``.engine`` file; ``<output>.json`` is written beside it.

    None and False leave a setting at the library's own default.

    Attributes:
        target: ``tensorrt`` builds for the GPU of this machine, ``tensorrt-rtx`` needs none.
        batch: (minimum, optimal, maximum) of a model with a dynamic batch; None takes 1, 1, 8.
        workspace: maximum workspace memory on the GPU, bytes.
        optimization_level: 0 (quick build) to 5 (longest search). TensorRT only.
        tf32: allow FP32 matrix products to round their inputs to 10 bits; faster, less exact.
        strip_weights: leave the weights out of the engine; it is refitted from the ONNX file.
        version_compatible: the engine runs with later versions of TensorRT, too. TensorRT only.
        hardware_compatibility: other GPUs that the engine shall run on. TensorRT only.
        timing_cache: file that makes a second build quick; None takes the one in the user's
            cache folder. TensorRT only.
        compute_capabilities: GPUs to build for, as "8.9"; none means 8.0 and all later ones.
            TensorRT-RTX only.
        expect_precision: what the engine must compute in; None takes the model's own precision.
    """

    target: Target = "tensorrt"
    compute_capabilities: tuple[str, ...] = option(
        (),
        "GPU to build for, e.g. 8.9; can be repeated (default: 8.0 and later). RTX only.",
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
        None, "0 (quick build) to 5 (longest search). TensorRT only.", int
    )
    tf32: bool = option(False, "Allow TF32 for FP32 matrix multiplications (default: off).", bool)
    strip_weights: bool = option(
        False, "Leave the weights out; the engine is refitted from the ONNX file.", bool
    )
    version_compatible: bool = option(
        False, "Run with later versions of TensorRT, too. TensorRT only.", bool
    )
    hardware_compatibility: HardwareCompatibility = option(
        "none",
        "none, ampere-plus or same-compute-capability (default: none). TensorRT only.",
        flag="--hardware-compatible",
        parse=lambda text: text.replace("-", "_"),
    )
    timing_cache: Path | None = option(
        None, "File with kept measurements (default: in the user's cache folder).", Path
    )
    expect_precision: str | None = option(
        None, "Fail unless the engine computes in this precision."
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
            least, optimal, largest = self.batch
            if not 1 <= least <= optimal <= largest:
                raise UsageError(
                    f"--batch {least}:{optimal}:{largest} must be in ascending order, from 1.",
                    fix="Write --batch 1:1:8 for minimum, optimal and maximum batch.",
                )
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"--workspace {self.workspace} leaves no memory.")
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_LEVEL:
            raise UsageError(f"--optimization-level {level} is not one of 0 to {MAX_LEVEL}.")
        for capability in self.compute_capabilities:
            one_of("--compute-capability", capability, RTX_CAPABILITIES)
        if self.timing_cache is not None:
            real = os.path.realpath(self.timing_cache)
            if real in (os.path.realpath(f) for f in (self.onnx, self.output)):
                raise UsageError(
                    f"--timing-cache {self.timing_cache} is another file of this build."
                )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise UsageError("A compute capability is named twice.")

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by what they are called in messages."""
        return {"The engine": self.output, "The engine's description": sidecar_path(self.output)}

    def _check_target(self) -> None:
        knobs = RTX_ONLY if self.target == "tensorrt" else TENSORRT_ONLY
        for name, why in knobs.items():
            if getattr(self, name) != getattr(type(self), name):
                flag = self.options()[name].flag
                raise UsageError(
                    f"{flag} does not apply to --target {self.target}.",
                    why=f"{self.target}: {why}.",
                    fix=f"Leave {flag} out, or choose the other target.",
                )


def parse_batch(text: str) -> tuple[int, int, int]:
    """``1:1:8`` to (minimum, optimal, maximum).

    Raises:
        UsageError: it is not three numbers.
    """
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,6})", text.strip())
    if match is None:
        raise UsageError(
            f"--batch {text!r} cannot be read.",
            fix="Write --batch 1:1:8 for minimum, optimal and maximum batch.",
        )
    return int(match[1]), int(match[2]), int(match[3])
