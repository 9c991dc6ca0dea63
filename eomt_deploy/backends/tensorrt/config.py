"""What the user may ask of a build. Imports no TensorRT, so that mistakes are told at once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.artifact import EXTERNAL_SUFFIX
from eomt_deploy.errors import UsageError
from eomt_deploy.sidecar import TARGETS, Target, sidecar_path

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

SUFFIX = ".engine"
XML = ".xml"
"""Of OpenVINO's models; the weights stand in the .bin beside."""
ARITHMETICS = ("auto", "f32", "bf16", "f16")
DEFAULT_BATCH = (1, 1, 8)
"""(least, optimal, largest) batch of a model whose batch is free."""
MAX_LEVEL = 5
PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8")
"""What the heavy layers of an engine can compute in, the widest first."""
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""GPUs that TensorRT-RTX can build for without having one; data-centre Hopper is not among them."""

# Knobs of one target only -> why the other has none.
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


@dataclass(frozen=True)
class BuildConfig:
    """One build. None and False leave a knob at the library's own default.

    Attributes:
        onnx: model that `eomt-deploy export` wrote; its precision becomes the engine's.
        output: the ``.engine`` file to write; ``<output>.json`` is written beside it.
        target: ``tensorrt`` builds for the GPU of this machine, ``tensorrt-rtx`` needs none.
        batch: (least, optimal, largest) of a model whose batch is free; None takes 1, 1, 8.
        workspace: most scratch memory of the GPU, bytes.
        optimization_level: 0 (quick build) to 5 (longest search). TensorRT only.
        tf32: let FP32 matrix products round their inputs to 10 bits; quicker, less exact.
        strip_weights: leave the weights out of the plan; it is refitted from the ONNX file.
        version_compatible: runs with later versions of TensorRT, too. TensorRT only.
        hardware_compatibility: other GPUs that the engine shall run on. TensorRT only.
        timing_cache: file that makes a second build quick; None takes the one in the user's
            cache folder. TensorRT only.
        compute_capabilities: GPUs to build for, as "8.9"; none means 8.0 and all later ones.
            TensorRT-RTX only.
        expect_precision: what the engine must compute in; None takes the model's own precision.
        overwrite: replace existing files that eomt-deploy did not write.
    """

    onnx: Path
    output: Path
    target: Target = "tensorrt"
    batch: tuple[int, int, int] | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    expect_precision: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != SUFFIX:
            raise UsageError(
                f"{self.output} has the suffix {self.output.suffix or '(none)'}; an engine ends "
                f"in {SUFFIX}.",
                fix=f"Use -o {self.output.with_suffix(SUFFIX)}.",
            )
        _one_of("--target", self.target, TARGETS)
        _one_of(
            "--hardware-compatible", self.hardware_compatibility, get_args(HardwareCompatibility)
        )
        if self.expect_precision is not None:
            _one_of("--expect-precision", self.expect_precision, PRECISIONS)
        self._check_target()
        if self.batch is not None:
            least, optimal, largest = self.batch
            if not 1 <= least <= optimal <= largest:
                raise UsageError(
                    f"--batch {least}:{optimal}:{largest} must grow from least to largest, from 1.",
                    fix="Write --batch 1:1:8 for least, optimal and largest batch.",
                )
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"--workspace {self.workspace} leaves no memory.")
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_LEVEL:
            raise UsageError(f"--optimization-level {level} is not one of 0 to {MAX_LEVEL}.")
        for capability in self.compute_capabilities:
            _one_of("--compute-capability", capability, RTX_CAPABILITIES)
        if self.timing_cache is not None:
            real = os.path.realpath(self.timing_cache)
            if real in (os.path.realpath(f) for f in (self.onnx, self.output)):
                raise UsageError(
                    f"--timing-cache {self.timing_cache} is another file of this build."
                )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise UsageError("A compute capability is named twice.")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read, and never replaced."""
        return (self.onnx, self.onnx.with_name(self.onnx.name + EXTERNAL_SUFFIX))

    @property
    def outputs(self) -> dict[str, Path]:
        """Files that are written, by what they are called in messages."""
        return {"The engine": self.output, "The engine's description": sidecar_path(self.output)}

    def _check_target(self) -> None:
        knobs = RTX_ONLY if self.target == "tensorrt" else TENSORRT_ONLY
        options = {
            "compute_capabilities": "--compute-capability",
            "hardware_compatibility": "--hardware-compatible",
        }
        for name, why in knobs.items():
            if getattr(self, name) != getattr(type(self), name):
                option = options.get(name, f"--{name.replace('_', '-')}")
                raise UsageError(
                    f"{option} does not apply to --target {self.target}.",
                    why=f"{self.target}: {why}.",
                    fix=f"Leave {option} out, or choose the other target.",
                )


@dataclass(frozen=True)
class OpenVinoConfig:
    """One conversion.

    Attributes:
        onnx: model that `eomt-deploy export` wrote.
        output: the ``.xml`` file to write; the weights go into the ``.bin`` beside it.
        arithmetic: what the unquantised part computes in; ``auto`` takes BF16 for an FP32 or INT8
            model when it is faster here and keeps 99.5% of the labels.
        images: photo or folder to judge that on; None takes those of the package.
        overwrite: replace existing files that eomt-deploy did not write.
    """

    onnx: Path
    output: Path
    arithmetic: str = "auto"
    images: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix != XML:  # OpenVINO writes no .XML
            raise UsageError(
                f"{self.output} has the suffix {self.output.suffix or '(none)'}; OpenVINO's files "
                f"end in {XML}.",
                fix=f"Use -o {self.output.with_suffix(XML)}.",
            )
        if self.arithmetic not in ARITHMETICS:
            raise UsageError(
                f"--arithmetic {self.arithmetic} is unknown.", fix=f"Use {', '.join(ARITHMETICS)}."
            )

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read, and never replaced."""
        side = self.onnx.with_name(self.onnx.name + EXTERNAL_SUFFIX)
        return (self.onnx, side, *([self.images] if self.images else []))

    @property
    def outputs(self) -> dict[str, Path]:
        """Files that are written, by what they are called in messages."""
        return {"-o": self.output, "The weights file": self.output.with_suffix(".bin")}


def parse_batch(text: str) -> tuple[int, int, int]:
    """``1:1:8`` to (least, optimal, largest).

    Raises:
        UsageError: it is not three numbers.
    """
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,6})", text.strip())
    if match is None:
        raise UsageError(
            f"--batch {text!r} cannot be read.",
            fix="Write --batch 1:1:8 for least, optimal and largest batch.",
        )
    return int(match[1]), int(match[2]), int(match[3])


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value!r} is unknown.", fix=f"Known: {', '.join(known)}.")
