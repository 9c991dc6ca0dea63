"""What the user may ask of an export. Imports no torch, so that mistakes are told at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.addresses import is_address
from eomt_deploy.artifact import EXTERNAL_SUFFIX
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import PRECISIONS, QUANTIZED
from eomt_deploy.spec import Task

Method = Literal["output", "mse", "minmax", "percentile", "entropy"]
Attention = Literal["written", "fused"]
DEFAULT_SMOOTHING = 0.7
"""Measured on a DINOv2-S: 0, 0.5 and 0.7 agree with FP32 on 99.3%, 99.6% and 99.6% of pixels."""
METHODS: tuple[Method, ...] = get_args(Method)
PACKAGE = ".pt2"
FRONT_JSON, FRONT_PLOT = ".pareto.json", ".pareto.png"
"""What a search under a budget tried, beside the model."""
SUFFIXES = (".onnx", PACKAGE)


@dataclass(frozen=True)
class ExportConfig:
    """One export.

    Attributes:
        checkpoint: file, Hugging Face folder, ``hf://owner/name[@revision]``, an address or a
            catalog name.
        output: the ``.onnx`` file to write, or a ``.pt2`` that PyTorch's AOTInductor compiles.
        task: needed where the catalog does not tell.
        classes: JSON class list, or the name of one in ``export/classes/``; needed where neither
            catalog nor checkpoint tells.
        size: network input (H, W); None takes the trained size.
        native_size: trained (H, W), where the checkpoint cannot tell.
        name: catalog entry that the checkpoint belongs to.
        heads: attention heads, where they are not width / 64.
        num_blocks: blocks that see the queries, where the checkpoint does not tell.
        base_weights: folder, file or ``hf://owner/name`` of the DINOv3 model that an official
            file is a difference to.
        weights_key: which weights of the file, for example ``state_dict``; None takes the
            averaged ones (EMA) where there are some.
        insecure: download from ``http://`` without a hash, too.
        allow_stuff: export an instance model although its class list has stuff classes.
        batch: fixed batch size; None leaves it free (``.pt2``: 1).
        device: that a ``.pt2`` is compiled for; None takes the GPU, if there is one.
        precision: one of :data:`eomt_deploy.precision.PRECISIONS`; decided in the graph.
        calibrate: image or folder that ranges are measured on; int8 and fp8 need it, fp16 takes
            the images that verification uses when it is None.
        method: how the range of a quantised layer's input is chosen; None takes the best known
            (output for int8, minmax for fp8).
        smooth: SmoothQuant strength 0-1 of int8 and fp8; 0 leaves it out.
        budget: points (of the metric with ``data``, else of label agreement) that int8 or fp8 may
            lose; blocks stay FP16 until it is met.
        data: labelled data that the verdict is made on; None takes images held out of
            ``calibrate``.
        high: roles or modules that stay FP32.
        islands: keep in FP32 what the range analysis finds.
        attention: ``written`` out, which every run-time fuses, or ``fused`` into one operator.
        allow_unannealed: export although masked attention was not annealed away.
        verify_images: images to verify on; None takes the ones that come with the package.
        overwrite: replace existing files that eomt-deploy did not write.
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
    high: tuple[str, ...] = ()
    islands: bool = True
    attention: Attention = "written"
    allow_unannealed: bool = False
    verify_images: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"{self.output} has the suffix {self.output.suffix or '(none)'}; the suffix "
                f"decides the format, and this version writes {' and '.join(SUFFIXES)}.",
                fix=f"Use -o {self.output.with_suffix('.onnx')}.",
            )
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"Precision {self.precision!r} is unknown.", fix=f"Known: {', '.join(PRECISIONS)}."
            )
        self._check_precision()
        self._check_package()
        if self.task is not None and self.task not in get_args(Task):
            raise UsageError(
                f"Task {self.task!r} is unknown.", fix=f"Known: {', '.join(get_args(Task))}."
            )
        if self.allow_stuff and self.task not in (None, "instance"):
            raise UsageError(
                f"--allow-stuff does nothing for a {self.task} model.", fix="Leave it out."
            )
        if self.insecure and not any(
            is_address(text) for text in (self.checkpoint, self.base_weights or "")
        ):
            raise UsageError(
                "--insecure has no effect here: nothing is downloaded from a web address.",
                fix="Leave it out.",
            )
        for name in ("batch", "heads", "num_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be 1 or more.")

    def _check_precision(self) -> None:
        quantized = self.precision in QUANTIZED
        if quantized and self.calibrate is None:
            raise UsageError(
                f"{self.precision} needs images to calibrate on.",
                why="The ranges of the activations decide the accuracy; made-up ones ruin it.",
                fix="Pass --calibrate with a folder of images like those that the model will see.",
            )
        given = {
            "--method": (self.method is not None, quantized),
            "--budget": (self.budget is not None, quantized),
            "--data": (bool(self.data), quantized),
            "--calibrate": (self.calibrate is not None, self.precision not in ("fp32", "bf16")),
            "--smooth": (self.smooth != DEFAULT_SMOOTHING, quantized),
            "--high": (bool(self.high), self.precision != "fp32"),
            "--no-islands": (not self.islands, self.precision not in ("fp32", "bf16")),
        }
        for option, (used, applies) in given.items():
            if used and not applies:
                raise UsageError(
                    f"{option} does nothing for {self.precision}.", fix="Leave it out."
                )
        if self.method is not None and self.method not in METHODS:
            raise UsageError(
                f"Method {self.method!r} is unknown.", fix=f"Known: {', '.join(METHODS)}."
            )
        if self.method == "entropy" and self.precision == "fp8":
            raise UsageError(
                "Entropy calibration is defined for int8's even steps, not for fp8.",
                fix="Use --method minmax.",
            )
        if not 0 <= self.smooth <= 1:
            raise UsageError(f"--smooth {self.smooth:g} is not between 0 and 1.")
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise UsageError(f"--budget {self.budget:g} is no number of points, 0 or more.")
        if self.attention not in get_args(Attention):
            raise UsageError(
                f"Attention {self.attention!r} is unknown.", fix="Known: written, fused."
            )

    def _check_package(self) -> None:
        if self.output.suffix.lower() != PACKAGE:
            if self.device is not None:
                raise UsageError(
                    f"--device does nothing for {self.output.name}, which runs anywhere.",
                    fix=f"Leave it out; it is for {PACKAGE} files.",
                )
            return
        if self.precision in QUANTIZED:
            raise UsageError(
                f"A {PACKAGE} file cannot be {self.precision}.",
                why="AOTInductor compiles the network in one type.",
                fix="Use --precision fp16 or bf16, or write an .onnx file.",
            )
        ranges = {
            "--calibrate": self.calibrate is not None,
            "--high": bool(self.high),
            "--no-islands": not self.islands,
            "--attention": self.attention != "written",
        }
        for option, used in ranges.items():
            if used:
                raise UsageError(f"{option} does nothing for {PACKAGE} files.", fix="Leave it out.")
        if self.device not in (None, "cpu", "cuda"):
            raise UsageError(f"There is no device {self.device!r}.", fix="Use cpu or cuda.")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read, and never replaced."""
        texts = [t for t in (self.checkpoint, self.base_weights) if t and "://" not in t]
        paths = (self.classes, self.calibrate, *self.data, self.verify_images)
        return (*map(Path, texts), *(path for path in paths if path))

    @property
    def outputs(self) -> dict[str, Path]:
        """Files that may be written or removed, by what they are called in messages."""
        found = {"-o": self.output}
        if self.output.suffix.lower() != PACKAGE:
            found["The weights file"] = self.output.with_name(self.output.name + EXTERNAL_SUFFIX)
        if self.budget is not None:
            found["The Pareto front"] = self.output.with_suffix(FRONT_JSON)
            found["The Pareto plot"] = self.output.with_suffix(FRONT_PLOT)
        return found

    @property
    def range_method(self) -> Method:
        """How ranges are chosen; FP8 holds outliers well enough to clip nothing."""
        return self.method or ("output" if self.precision == "int8" else "minmax")
