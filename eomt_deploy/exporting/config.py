"""Options of an export. Does not import torch, so that wrong options are reported at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.addresses import is_address
from eomt_deploy.errors import UsageError
from eomt_deploy.model_file import EXTERNAL_SUFFIX
from eomt_deploy.precision import PRECISIONS, QUANTIZED
from eomt_deploy.spec import Task

Method = Literal["output", "mse", "minmax", "percentile", "entropy"]
Attention = Literal["written", "fused"]
DEFAULT_SMOOTHING = 0.7
"""Measured on a DINOv2-S: 0, 0.5 and 0.7 agree with FP32 on 99.3%, 99.6% and 99.6% of pixels."""
METHODS: tuple[Method, ...] = get_args(Method)
PACKAGE = ".pt2"
FRONT_JSON, FRONT_PLOT = ".pareto.json", ".pareto.png"
"""Suffixes of the files that list all trials of an export with a budget."""
SUFFIXES = (".onnx", PACKAGE)


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    Attributes:
        checkpoint: file, Hugging Face folder, ``hf://owner/name[@revision]``, URL or catalog name.
        output: the ``.onnx`` file to write, or a ``.pt2`` file that AOTInductor compiles.
        task: task of the model; None takes it from the catalog or the checkpoint.
        classes: class list: JSON or COCO file, or the name of a list of the catalog; None takes
            it from the catalog or the checkpoint.
        size: network input (H, W) in pixels; None takes the trained size.
        native_size: trained (H, W) in pixels, if it cannot be inferred from the checkpoint.
        name: catalog entry of the checkpoint.
        heads: number of attention heads, if it is not width / 64.
        num_blocks: number of blocks that process the queries, if the checkpoint does not store it.
        base_weights: DINOv3 weights that an official file adds to: folder, file or
            ``hf://owner/name``.
        weights_key: weights to take from the file, e.g. ``state_dict``; None takes the EMA
            weights, if any.
        insecure: allow ``http://`` URLs without a hash.
        allow_stuff: export an instance model even if its class list has stuff classes.
        batch: fixed batch size; None makes it dynamic (``.pt2``: 1).
        device: device to compile a ``.pt2`` file for; None takes the GPU, if there is one.
        precision: one of :data:`eomt_deploy.precision.PRECISIONS`.
        calibrate: calibration image or folder; required for int8 and fp8. With None, fp16
            measures ranges on the verification images.
        method: calibration method for the inputs of quantised layers; None takes output for int8
            and minmax for fp8.
        smooth: SmoothQuant strength of int8 and fp8, 0 (off) to 1.
        budget: maximum accuracy loss of int8 or fp8, in points of the metric with ``data``, else
            of label agreement; blocks stay in FP16 to meet it.
        data: labelled data to measure the accuracy loss on; if it is empty, label agreement is
            measured on images held out from ``calibrate``.
        quick: for int8 and fp8: take at most 8 images, and measure only the accuracy loss of all
            blocks together, not that of each block.
        high: roles or modules that stay in FP32.
        islands: keep layers in FP32 whose values exceed the FP16 range (FP32 islands).
        attention: ``written`` (separate operators, which every backend fuses) or ``fused`` (one
            Attention operator).
        allow_unannealed: export even if masked attention was not annealed to 0.
        verify_images: image or folder to verify on; None takes the images of the package.
        overwrite: replace existing files that eomt-deploy did not write.

    Raises:
        UsageError: an option has an invalid value, or has no effect with the others.
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
    base_weights: str | None = None
    weights_key: str | None = None
    insecure: bool = False
    allow_stuff: bool = False
    batch: int | None = None
    device: str | None = None
    precision: str = "fp32"
    calibrate: Path | None = None
    method: Method | None = None
    smooth: float = DEFAULT_SMOOTHING
    budget: float | None = None
    data: tuple[Path, ...] = ()
    quick: bool = False
    high: tuple[str, ...] = ()
    islands: bool = True
    attention: Attention = "written"
    allow_unannealed: bool = False
    verify_images: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"The output must end with {' or '.join(SUFFIXES)}, got {self.output}.",
                why="The suffix selects the format.",
                fix=f"Use -o {self.output.with_suffix('.onnx')}.",
            )
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"Precision {self.precision!r} is unknown.",
                fix=f"Use one of: {', '.join(PRECISIONS)}.",
            )
        self._check_precision()
        self._check_package()
        if self.task is not None and self.task not in get_args(Task):
            raise UsageError(
                f"Task {self.task!r} is unknown.", fix=f"Use one of: {', '.join(get_args(Task))}."
            )
        if self.allow_stuff and self.task not in (None, "instance"):
            raise UsageError(
                f"--allow-stuff has no effect on a {self.task} model.", fix="Leave it out."
            )
        if self.insecure and not any(
            is_address(text) for text in (self.checkpoint, self.base_weights or "")
        ):
            raise UsageError(
                "--insecure has no effect here: the weights are not downloaded from a URL.",
                fix="Leave it out.",
            )
        for name in ("batch", "heads", "num_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least 1, got {value}.",
                    fix="Pass 1 or more, or leave it out.",
                )

    def _check_precision(self) -> None:
        quantized = self.precision in QUANTIZED
        if quantized and self.calibrate is None:
            raise UsageError(
                f"{self.precision} needs calibration images.",
                why="The accuracy depends on the measured ranges of the activations.",
                fix="Pass --calibrate with a folder of images like those that the model will see.",
            )
        given = {
            "--method": (self.method is not None, quantized),
            "--budget": (self.budget is not None, quantized),
            "--data": (bool(self.data), quantized),
            "--quick": (self.quick, quantized),
            "--calibrate": (self.calibrate is not None, self.precision not in ("fp32", "bf16")),
            "--smooth": (self.smooth != DEFAULT_SMOOTHING, quantized),
            "--high": (bool(self.high), self.precision != "fp32"),
            "--no-islands": (not self.islands, self.precision not in ("fp32", "bf16")),
        }
        for option, (used, applies) in given.items():
            if used and not applies:
                raise UsageError(
                    f"{option} has no effect with {self.precision}.", fix="Leave it out."
                )
        if self.method is not None and self.method not in METHODS:
            raise UsageError(
                f"Calibration method {self.method!r} is unknown.",
                fix=f"Use one of: {', '.join(METHODS)}.",
            )
        if self.method == "entropy" and self.precision == "fp8":
            raise UsageError(
                "Entropy calibration does not support fp8.",
                why="It is defined for uniform quantisation steps, as in int8.",
                fix="Use --method minmax.",
            )
        if self.quick and self.budget is not None:
            raise UsageError(
                "--quick and --budget conflict.",
                why="A budget needs the accuracy loss of each block.",
                fix="Leave one of them out.",
            )
        if not 0 <= self.smooth <= 1:
            raise UsageError(
                f"--smooth must be between 0 and 1, got {self.smooth:g}.",
                fix="Pass a number in this range; 0 switches SmoothQuant off.",
            )
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise UsageError(
                f"--budget must be a number of points, 0 or more, got {self.budget:g}.",
                fix="Pass e.g. --budget 0.5, or leave it out.",
            )
        if self.attention not in get_args(Attention):
            raise UsageError(
                f"Attention {self.attention!r} is unknown.", fix="Use written or fused."
            )

    def _check_package(self) -> None:
        if self.output.suffix.lower() != PACKAGE:
            if self.device is not None:
                raise UsageError(
                    f"--device has no effect on {self.output.name}: only {PACKAGE} files are "
                    "compiled for a device.",
                    fix="Leave it out.",
                )
            return
        if self.precision == "int8":
            raise UsageError(
                f"A {PACKAGE} file cannot be int8.",
                why="PyTorch's INT8 products are slower than those in FP16.",
                fix="Use --precision fp8 for a GPU, fp16 or bf16, or write an .onnx file.",
            )
        ranges = {
            "--calibrate": self.calibrate is not None and self.precision != "fp8",
            "--budget": self.budget is not None,
            "--high": bool(self.high),
            "--no-islands": not self.islands,
            "--attention": self.attention != "written",
        }
        for option, used in ranges.items():
            if used:
                raise UsageError(f"{option} has no effect on {PACKAGE} files.", fix="Leave it out.")
        if self.device not in (None, "cpu", "cuda"):
            raise UsageError(f"Device {self.device!r} is unknown.", fix="Use cpu or cuda.")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read; they are never replaced."""
        texts = [t for t in (self.checkpoint, self.base_weights) if t and "://" not in t]
        paths = (self.classes, self.calibrate, *self.data, self.verify_images)
        return (*map(Path, texts), *(path for path in paths if path))

    @property
    def outputs(self) -> dict[str, Path]:
        """Files that may be written or removed, by their name in messages."""
        found = {"-o": self.output}
        if self.output.suffix.lower() != PACKAGE:
            found["The weights file"] = self.output.with_name(self.output.name + EXTERNAL_SUFFIX)
        if self.budget is not None:
            found["The Pareto front"] = self.output.with_suffix(FRONT_JSON)
            found["The Pareto plot"] = self.output.with_suffix(FRONT_PLOT)
        return found

    @property
    def range_method(self) -> Method:
        """Calibration method. FP8 represents outliers well enough without clipping (minmax)."""
        return self.method or ("output" if self.precision == "int8" else "minmax")
