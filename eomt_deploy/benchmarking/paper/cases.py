"""One row of a suite, opened in one runtime, and the work of each scope."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from eomt_deploy import __version__
from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.benchmarking.measure.clock import Job, Work
from eomt_deploy.benchmarking.paper.runtimes import Attention, Case, Running, find_runtime
from eomt_deploy.benchmarking.paper.suite_file import SuiteRow
from eomt_deploy.classes import make_classes
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from eomt_deploy.benchmarking.paper.baseline.deformable import Sampling
    from eomt_deploy.sources import RgbImage

PATCH = 16
UPSCALE = 2
THINGS_OF_COCO = 80
NOT_FINITE = "its random weights give NaN or infinite logits in this precision"


@dataclass
class Opened:
    """A case that is ready to be measured.

    Attributes:
        seconds: time to build, export and compile it.
        predict: the complete prediction of an image; None if no image was given.
    """

    row: SuiteRow
    runtime: str
    batch: int
    running: Running
    seconds: float
    predict: Work | None = None

    def job(self, scope: str) -> Job:
        """The work of a scope, and its timer."""
        if scope == "network":
            return Job(self.running.network, self.running.timer)
        if scope == "network+copies":
            return Job(self.running.copies)
        assert self.predict is not None  # SuiteConfig requires an image
        return Job(self.predict)

    def close(self) -> None:
        self.running.close()


def open_case(
    row: SuiteRow,
    runtime: str,
    device: str,
    precision: str,
    batch: int,
    folder: Path,
    shared: dict[str, nn.Module],
    threads: int | None,
    image: Path | RgbImage | None,
    sampling: str = "grid_sample",
) -> Opened:
    """Build a row's network and open it in a runtime.

    Args:
        row: row of the suite, with a step of the ladder.
        runtime: name from :func:`eomt_deploy.benchmarking.paper.runtimes.runtimes`.
        device: ``cpu`` or ``cuda``.
        precision: one of :data:`eomt_deploy.benchmarking.paper.runtimes.PRECISIONS`.
        batch: batch size in images; the network gets ``batch * row.inputs`` inputs.
        folder: folder for files, shared by the runtimes.
        shared: networks of the row that other runtimes have built, by device; it is updated.
        threads: number of CPU threads; None leaves the choice to the runtime.
        image: image of the end-to-end scope; None opens the case without it.
        sampling: kernel of the baseline's deformable attention, ``grid_sample`` or ``triton``.
    """
    start = time.perf_counter()
    inputs = batch * row.inputs
    images = np.random.default_rng(0).integers(0, 256, (inputs, *row.size, 3), np.uint8)
    case = Case(
        row=row,
        build=_builder(row, shared, sampling),
        images=images,
        device=device,
        precision=precision,
        spec=describe(row, precision, inputs),
        folder=folder,
        threads=threads,
    )
    running = find_runtime(runtime).open(case)
    seconds = time.perf_counter() - start
    # With NumPy, because our faster check needs OpenCV, which a machine for suites may lack.
    if not all(np.isfinite(np.asarray(logits)).all() for logits in running.run(images)):
        running.remark = "; ".join(filter(None, (running.remark, NOT_FINITE)))
    predict = None
    if image is not None:
        predict = _end_to_end(running, case.spec, image)
    return Opened(row, runtime, batch, running, seconds, predict)


def _builder(
    row: SuiteRow, shared: dict[str, nn.Module], sampling: str
) -> Callable[[Attention, str], nn.Module]:
    def build(attention: Attention, device: str) -> nn.Module:
        from eomt_deploy.benchmarking.paper.ladder import build_step

        if attention == "sdpa" and device in shared:
            return shared[device]
        assert row.step is not None  # Suite.select leaves quoted rows out
        network = build_step(
            row.step,
            row.backbone,
            size=row.size,
            queries=row.queries,
            classes=row.classes,
            attention=attention,
            sampling=cast("Sampling", sampling),
            device=device,
        )
        if attention == "sdpa":  # the one for export is used only once
            shared[device] = network
        return network

    return build


def describe(row: SuiteRow, precision: str, batch: int) -> ModelSpec:
    """The description that an export of the row would have, with placeholder class names."""
    from eomt_deploy.benchmarking.paper.ladder import BACKBONES

    dims = BACKBONES[row.backbone]
    names = [
        {"name": f"class {i}", "thing": row.task == "instance" or i < THINGS_OF_COCO}
        for i in range(row.classes)
    ]
    return ModelSpec(
        name=f"random {row.label}",
        task=row.task,
        image_size=row.size,
        patch_size=PATCH,
        num_queries=row.queries,
        num_blocks=dims.blocks,
        num_upscale=UPSCALE,
        classes=make_classes(names, "random"),
        resize=RESIZE_RULES[row.task],
        thresholds=TASK_THRESHOLDS[row.task],
        backbone=Backbone(
            dims.family, dims.width, dims.depth, dims.heads, dims.mlp, dims.registers, 0
        ),
        precision=precision,
        batch=batch,
        provenance={"eomt_deploy": __version__},
    )


class RunningEngine(Engine):
    """Engine around a network in a suite's runtime, for the usual pre- and postprocessing."""

    backend = "suite"

    def __init__(self, running: Running, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.device = running.device
        self._running = running

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        return self._running.run(images)


def _end_to_end(running: Running, spec: ModelSpec, image: Path | RgbImage) -> Work:
    from eomt_deploy.segmenter import Segmenter
    from eomt_deploy.sources import load_image

    segmenter = Segmenter(RunningEngine(running, spec))
    pixels = load_image(image)
    return lambda: segmenter.predict(pixels)
