"""An exported model as OpenVINO's own .xml and .bin, with the arithmetic that suits this chip."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.artifact import read_artifact
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
from eomt_deploy.outputs import check_outputs
from eomt_deploy.privacy import import_openvino
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_photos, load_image, readable_images

MIN_AGREEMENT = 0.995
"""Share of the labels that must stay the same for BF16 to be chosen."""
MIN_GAIN = 1.05
"""BF16 is chosen only where the chip is faster in it: some only emulate it."""
TIMED_CALLS = 5


@dataclass(frozen=True)
class Trial:
    """BF16 or FP16 against FP32 on this machine.

    Attributes:
        arithmetic: what was tried.
        agreement: share of the pixels with the same label.
        images: images it was judged on.
        times_as_fast: of the network, by the median of a few calls in turn.
        labelled: share of the pixels that have a label at all.
    """

    arithmetic: str
    agreement: float
    images: int
    times_as_fast: float
    labelled: float

    def __str__(self) -> str:
        fast = f"{self.arithmetic} here: {self.times_as_fast:.2f} times as fast as f32"
        if not self.labelled:
            return f"{fast}; the model sees nothing in these {self.images} images: pass --images"
        verdict = "worth it" if self.worth_it else "not worth it"
        return (
            f"{fast}, {self.agreement:.3%} of the labels the same on {self.images} images "
            f"({MIN_AGREEMENT:.1%} are needed): {verdict}"
        )

    @property
    def worth_it(self) -> bool:
        agrees = self.labelled > 0 and self.agreement >= MIN_AGREEMENT
        return agrees and self.times_as_fast >= MIN_GAIN


@dataclass(frozen=True)
class OpenVinoReport:
    """What was built.

    Attributes:
        files: the .xml and its .bin.
        version: of OpenVINO.
        precision: of the export.
        arithmetic: chosen for the unquantised part.
        trial: why; None where nothing had to be tried.
        warnings: what the user should know, such as images that were left out.
    """

    files: tuple[Path, ...]
    version: str
    precision: str
    arithmetic: str
    trial: Trial | None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report in a few lines."""
        size = sum(file.stat().st_size for file in self.files)
        yield f"wrote {' + '.join(map(str, self.files))} ({size / 1e6:.1f} MB)"
        yield f"  OpenVINO {self.version}, {self.precision} model, computes in {self.arithmetic}"
        if self.trial:
            yield f"  {self.trial}"

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return {**asdict(self), "files": [str(file) for file in self.files]}


def build_openvino(config: OpenVinoConfig, progress: Progress = no_progress) -> OpenVinoReport:
    """Convert an exported model, and decide what it computes in.

    Raises:
        ArtifactError: the model cannot be read, or was not written by eomt-deploy.
        MissingDependencyError: OpenVINO is not installed.
        DeviceError: this CPU does not compute in what was asked.
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
    found = search_images([config.images] if config.images else built_in_photos())
    progress("reading the model", None)
    spec = read_artifact(config.onnx).spec
    core = openvino.Core()
    possible = able(core)
    asked = config.arithmetic
    if asked != "auto" and asked not in possible:
        raise DeviceError(
            f"This CPU does not compute in {asked}.",
            fix=f"Use --arithmetic {' or '.join(possible)}, or leave it out.",
        )
    exported = ARITHMETIC.get(spec.precision)
    settled = exported if exported in possible else None
    tried = "bf16" if asked == "auto" else asked
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
                    fix="Name a place that you may write to, with enough space.",
                ) from error

        progress("converting", None)
        chosen = (settled or "f32") if asked == "auto" else asked
        trial = None
        notes: list[str] = []
        save(chosen)
        if tried in possible and tried not in ("f32", settled) and (asked != "auto" or not settled):
            purpose = "judging the arithmetic"
            images, notes = readable_images(found.paths, purpose, Processor(spec).preprocess)
            progress(f"trying {tried} on {len(images)} images", None)
            trial = try_arithmetic(plain, tried, images)
            if asked == "auto" and trial.worth_it:
                chosen = tried
                save(chosen)
        try:
            # The graph goes first and comes last: it never stands beside other weights.
            config.output.unlink(missing_ok=True)
            for target in reversed(targets):
                (folder / target.name).replace(target)
        except OSError as error:
            raise OutputError(
                f"{config.output} cannot be put in its place: {error.strerror}.",
                fix="Close what has the old one open, and build again.",
            ) from error
    warnings = (*notes, *([f"Images: {found.note}."] if found.note and trial else []))
    return OpenVinoReport(targets, VERSION, spec.precision, chosen, trial, warnings)


def try_arithmetic(model: Path, arithmetic: Any, images: Sequence[Path]) -> Trial:
    """Labels and time of a model in another arithmetic, compared with FP32 on this machine."""
    from eomt_deploy.backends.openvino.engine import OpenVinoEngine

    first, second = (
        OpenVinoEngine(model, arithmetic=kind, cache=False) for kind in ("f32", arithmetic)
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
            except VerificationError:  # its logits are not finite: it agrees on nothing
                same.append(0.0)
            labelled.append((exact >= 0).mean())
        batch = np.zeros((first.spec.batch or 1, *first.spec.image_size, 3), np.uint8)
        times = alternate(partial(first.run, batch), partial(second.run, batch))
    return Trial(arithmetic, float(np.mean(same)), len(images), times, float(np.mean(labelled)))


def alternate(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """How many times as fast the second function is: medians of a few calls in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_CALLS + 1):
        for function, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0][1:]) / np.median(times[1][1:]))  # the first call warms up
