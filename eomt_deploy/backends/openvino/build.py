"""Conversion of an exported model to OpenVINO's .xml and .bin, and choice of its arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.building import Progress, no_progress
from eomt_deploy.backends.engine import Engine, run_in_parts
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    OutputError,
    VerificationError,
)
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.image_search import search_images
from eomt_deploy.labels import label_map
from eomt_deploy.model_file import read_model_file
from eomt_deploy.outputs import check_outputs
from eomt_deploy.privacy import import_openvino
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_images, load_image, readable_images
from eomt_deploy.units import counted

MIN_AGREEMENT = 0.995
"""Minimum share of equal labels for choosing BF16."""
MIN_GAIN = 1.05
"""Minimum speedup for choosing BF16: some CPUs only emulate it."""
TIMED_CALLS = 5


@dataclass(frozen=True)
class Trial:
    """Comparison of BF16 or FP16 with FP32 on this machine.

    Attributes:
        arithmetic: the arithmetic that was compared with FP32.
        agreement: share of the pixels with the same label.
        images: number of images.
        times_as_fast: speedup of the network: ratio of the median times of a few alternating calls.
        labelled: share of the pixels that FP32 assigns a label to.
    """

    arithmetic: str
    agreement: float
    images: int
    times_as_fast: float
    labelled: float

    def __str__(self) -> str:
        fast = (
            f"{self.arithmetic} is {self.times_as_fast:.2f} times as fast as fp32 on this machine"
        )
        if not self.labelled:
            return f"{fast}; no segments in the {self.images} images: pass other --images"
        verdict = "worth it" if self.worth_it else "not worth it"
        return (
            f"{fast}, {self.agreement:.3%} of the labels are equal on "
            f"{counted(self.images, 'image')} (minimum: {MIN_AGREEMENT:.1%}): {verdict}"
        )

    @property
    def worth_it(self) -> bool:
        agrees = self.labelled > 0 and self.agreement >= MIN_AGREEMENT
        return agrees and self.times_as_fast >= MIN_GAIN


@dataclass(frozen=True)
class OpenVinoReport:
    """Result of a conversion.

    Attributes:
        files: the .xml and its .bin.
        version: version of OpenVINO.
        precision: precision of the export.
        arithmetic: arithmetic of the unquantised layers.
        trial: comparison that led to the arithmetic; None if none was necessary.
        warnings: warnings for the user, e.g. on skipped images.
    """

    files: tuple[Path, ...]
    version: str
    precision: str
    arithmetic: str
    trial: Trial | None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        size = sum(file.stat().st_size for file in self.files)
        yield f"wrote {' + '.join(map(str, self.files))} ({size / 1e6:.1f} MB)"
        yield f"  OpenVINO {self.version}, {self.precision} model, computes in {self.arithmetic}"
        if self.trial:
            yield f"  {self.trial}"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        return {**asdict(self), "files": [str(file) for file in self.files]}


def build_openvino(config: OpenVinoConfig, progress: Progress = no_progress) -> OpenVinoReport:
    """Convert an exported model, and choose its arithmetic.

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        MissingDependencyError: OpenVINO is not installed.
        DeviceError: this CPU does not support the requested arithmetic.
        OutputError: the output cannot be written.
    """
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise MissingDependencyError(
            "openvino is not installed.", fix="pip install 'eomt-deploy[openvino]'"
        ) from error
    from eomt_deploy.backends.openvino.engine import (
        ARITHMETIC,
        ARITHMETIC_KEY,
        VERSION,
        able,
        read_model,
    )

    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    targets = config.output, config.output.with_suffix(".bin")
    found = search_images([config.images] if config.images else built_in_images())
    progress("reading the model", None)
    spec = read_model_file(config.onnx).spec
    core = openvino.Core()
    possible = able(core)
    requested = config.arithmetic
    if requested != "auto" and requested not in possible:
        raise DeviceError(
            f"This CPU does not compute in {requested}.",
            fix=f"Use --arithmetic {' or '.join(possible)}, or leave --arithmetic out.",
        )
    exported = ARITHMETIC.get(spec.precision)
    settled = exported if exported in possible else None
    tried = "bf16" if requested == "auto" else requested
    with staging_folder(config.output) as folder:
        model = read_model(core, config.onnx)
        plain = folder / config.output.name

        def save(arithmetic: str) -> None:
            model.set_rt_info(arithmetic, ARITHMETIC_KEY)
            try:
                openvino.save_model(model, plain, compress_to_fp16=False)
            except RuntimeError as error:
                raise OutputError(
                    f"OpenVINO could not write {config.output}: {error}.",
                    fix="Choose a writable folder with enough free space.",
                ) from error

        progress("converting", None)
        chosen = (settled or "fp32") if requested == "auto" else requested
        trial = None
        notes: list[str] = []
        save(chosen)
        compare = tried not in ("fp32", settled) and (requested != "auto" or not settled)
        if compare and tried in possible:
            purpose = "comparing the arithmetic"
            images, notes = readable_images(found.paths, purpose, Processor(spec).preprocess)
            progress(f"trying {tried} on {len(images)} images", None)
            trial = try_arithmetic(plain, tried, images)
            if requested == "auto" and trial.worth_it:
                chosen = tried
                save(chosen)
        try:
            # The old .xml is removed first and the new one is put in place last, so that an .xml
            # never exists beside the .bin of another model.
            config.output.unlink(missing_ok=True)
            for target in reversed(targets):
                (folder / target.name).replace(target)
        except OSError as error:
            raise OutputError(
                f"{config.output} cannot be replaced: {error.strerror}.",
                fix="Close programs that have the old file open, and build again.",
            ) from error
    warnings = (*notes, *([f"Images: {found.note}."] if found.note and trial else []))
    return OpenVinoReport(targets, VERSION, spec.precision, chosen, trial, warnings)


def try_arithmetic(model: Path, arithmetic: Any, images: Sequence[Path]) -> Trial:
    """Compare the labels and the time of another arithmetic with FP32 on this machine."""
    from eomt_deploy.backends.openvino.engine import OpenVinoEngine

    first, second = (
        OpenVinoEngine(model, arithmetic=kind, cache=False) for kind in ("fp32", arithmetic)
    )
    with first, second:
        processor = Processor(first.spec, backend=first.backend)
        same, labelled = [], []
        for image in images:
            inputs, geometry = processor.preprocess(load_image(image))

            def labels(engine: Engine) -> npt.NDArray[np.int32]:
                result = processor.postprocess(*run_in_parts(engine, inputs), geometry)  # noqa: B023
                return label_map(result)

            exact = labels(first)
            try:
                same.append(float((exact == labels(second)).mean()))
            except VerificationError:  # the logits are not finite: no label agrees
                same.append(0.0)
            labelled.append((exact >= 0).mean())
        batch = np.zeros((first.spec.batch or 1, *first.spec.image_size, 3), np.uint8)
        times = alternate(partial(first.run, batch), partial(second.run, batch))
    return Trial(arithmetic, float(np.mean(same)), len(images), times, float(np.mean(labelled)))


def alternate(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Speedup of the second function: ratio of the medians of a few alternating calls."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_CALLS + 1):
        for function, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0][1:]) / np.median(times[1][1:]))  # the first call warms up
