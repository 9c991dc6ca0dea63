"""Benchmark of engines: each stage of a prediction, and the complete call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.benchmarking.images import (
    MAX_IMAGES,
    BenchImage,
    BenchSources,
    bench_sources,
    described,
)
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.machine.watch import Watch
from eomt_deploy.benchmarking.measure.clock import Job, Rounds, measure
from eomt_deploy.benchmarking.measure.gpu_clock import network_job
from eomt_deploy.benchmarking.measure.scenarios import (
    LOADS,
    QUEUE,
    Scenario,
    Served,
    no_clock,
    poisson_arrivals,
    serve,
)
from eomt_deploy.benchmarking.measure.statistics import (
    clock_problem,
    percentile,
    share_of,
    variation,
)
from eomt_deploy.benchmarking.measure.verdict import Evidence, judge
from eomt_deploy.benchmarking.report import Report, Row
from eomt_deploy.data_files import folder, make_entry, read_toml
from eomt_deploy.errors import UsageError
from eomt_deploy.processing.outputs import check_finite
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import RgbImage, load_image

DECODE = "decode"
NETWORK = "network"
COPIES = "network+copies"
END_TO_END = "end-to-end"


MAX_HELD_BYTES = 2 << 30
"""Maximum memory of the images, with the inputs and logits of all engines, beyond the first one."""
CAPACITY_ROUNDS = 10
"""Minimum number of calls from which the capacity of the server scenario is computed."""
TIMES_PER_IMAGE = 2
"""Minimum number of measured rounds of each image, without which its variation is unknown."""


class Turns:
    """Which image the current round measures: all jobs of a round get the same one.

    Args:
        count: number of images.
        warmup: number of warm-up rounds. The measured rounds start with the first image.
    """

    def __init__(self, count: int, warmup: int) -> None:
        self._count, self._warmup = count, warmup
        self.index = 0
        self.finished(0)

    def finished(self, rounds: int) -> None:
        """Choose the image of the next round, after this number of finished rounds."""
        self.index = (rounds - self._warmup) % self._count

    def job(self, jobs: Sequence[Job]) -> Job:
        """One job that does the work of the current image."""
        return Job(lambda: jobs[self.index].work(), jobs[0].timer)


@dataclass(frozen=True)
class Prepared:
    """An image with the input and the output of one engine."""

    image: BenchImage
    inputs: npt.NDArray[np.uint8]
    logits: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    geometry: Any

    @property
    def nbytes(self) -> int:
        """Memory in bytes, without the pixels."""
        return self.inputs.nbytes + sum(logits.nbytes for logits in self.logits)


def prepared(segmenter: Segmenter, image: BenchImage) -> Prepared:
    """Run an engine once on an image.

    Raises:
        VerificationError: the model returns NaN or infinite logits. It cannot be used, so it is
            not timed.
    """
    engine = segmenter.engine
    inputs, geometry = segmenter.processor.preprocess(image.pixels)
    class_logits, mask_logits = engine.run(inputs)
    check_finite(engine.spec, class_logits, mask_logits, backend=engine.backend, image=image.name)
    return Prepared(image, inputs, (class_logits, mask_logits), geometry)


def prepare_all(
    segmenters: Sequence[Segmenter], images: Iterable[BenchImage]
) -> list[list[Prepared]]:
    """Read images and run each engine on them, as far as they fit into the memory limit.

    Returns:
        for each image the :class:`Prepared` of every engine; at least one image.
    """
    kept: list[list[Prepared]] = []
    held = 0
    for image in images:
        one = [prepared(segmenter, image) for segmenter in segmenters]
        held += image.pixels.nbytes + sum(part.nbytes for part in one)
        if kept and held > MAX_HELD_BYTES:
            break
        kept.append(one)
    return kept


def stage_jobs(segmenter: Segmenter, images: Sequence[Prepared], turns: Turns) -> dict[str, Job]:
    """One job per stage, by name; the inputs of all stages are computed once.

    ``network`` has its inputs and outputs on the engine's device; on a CPU it is the same as
    ``network+copies``. Frames of a video have no ``decode``.
    """
    processor, engine = segmenter.processor, segmenter.engine
    limit = segmenter.max_pixels

    def each(work: Callable[[Prepared], object]) -> Job:
        return turns.job([Job(partial(work, image)) for image in images])

    networks: dict[int, Job] = {}
    # The largest first: its buffers on a GPU also hold the others, and are not allocated again.
    for index in sorted(range(len(images)), key=lambda i: -len(images[i].inputs)):
        networks[index] = network_job(engine, images[index].inputs)
    jobs = {
        DECODE: each(lambda i: load_image(source_of(i.image), max_pixels=limit)),
        "preprocess": each(lambda i: processor.preprocess(i.image.pixels)),
        NETWORK: turns.job([networks[index] for index in range(len(images))]),
        COPIES: each(lambda i: engine.run(i.inputs)),
        "postprocess": each(lambda i: processor.postprocess(*i.logits, i.geometry)),
        END_TO_END: each(lambda i: segmenter.predict(source_of(i.image))),
    }
    if any(image.image.source is None for image in images):
        del jobs[DECODE]
    return jobs


def source_of(image: BenchImage) -> Path | bytes | RgbImage:
    """What a user passes for an image: its file or content, or the pixels of a frame."""
    return image.pixels if image.source is None else image.source


@dataclass(frozen=True)
class StageSettings:
    """Defaults of `bench --engine`, from ``benchmarks/stages.toml``."""

    name: str
    summary: str
    stages: tuple[str, ...]
    warmup: int
    iterations: int
    unstable_cv: float


@cache
def stage_settings() -> StageSettings:
    """The settings in ``benchmarks/stages.toml``."""
    path = folder("benchmarks") / "stages.toml"
    data = {key: value for key, value in read_toml(path).items() if key != "kind"}
    settings: StageSettings = make_entry(StageSettings, path, data)
    return settings


def bench_stages(
    segmenters: Sequence[tuple[str, Segmenter]],
    image: Path | BenchSources,
    settings: StageSettings,
    rounds: Rounds | None = None,
    *,
    stages: Sequence[str] = (),
    scenario: Scenario = "single",
    batches: Sequence[int] = (1,),
    rate: float | None = None,
    serve_seconds: float = 20.0,
    scores: Sequence[float] = (),
    threads: int | None = None,
    busy: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure stages of every engine in interleaved rounds.

    Args:
        segmenters: names and open segmenters.
        image: image that all engines get, or the result of
            :func:`eomt_deploy.benchmarking.images.bench_sources`. Several images are measured in
            turn, one per round: at most :data:`MAX_IMAGES`, each in at least
            :data:`TIMES_PER_IMAGE` rounds.
        settings: default stages and rounds, and the stability limit.
        rounds: rounds that replace those of the settings.
        stages: stages or scopes that replace the stages of the settings.
        scenario: ``offline`` also measures the batch sizes ``batches``; ``server`` also answers
            requests end to end, which arrive at ``rate``.
        batches: batch sizes of the offline scenario.
        rate: requests per second of the server scenario; None tries the shares ``LOADS`` of the
            measured throughput.
        serve_seconds: duration of each rate.
        scores: scores of the engines in percent, in the order of ``segmenters``, or none.
        threads: requested number of CPU threads; it is only recorded in the report.
        busy: load of the GPU before the engines were opened, see
            :func:`eomt_deploy.benchmarking.machine.watch.gpu_load`.
        progress: called with the number of finished rounds.
        log: called with one line that says what is measured, before it starts.

    Raises:
        ImageError: an image cannot be read.
        UsageError: fewer than two rounds, or an unknown stage.
        VerificationError: a model returns NaN or infinite logits.
    """
    rounds = rounds or Rounds(settings.iterations, settings.warmup)
    machine = environment(threads)  # before our own load
    on_gpu = any(s.engine.device.startswith("cuda") for _, s in segmenters)
    known = dict(zip([name for name, _ in segmenters], scores, strict=False))
    jobs: dict[str, Job] = {}
    rows: dict[str, Row] = {}
    limit = segmenters[0][1].max_pixels
    sources = bench_sources([image], limit) if isinstance(image, Path) else image
    count = max(1, min(MAX_IMAGES, rounds.iterations // TIMES_PER_IMAGE))
    images = prepare_all([segmenter for _, segmenter in segmenters], sources.read(count))
    measured_images = [one[0].image for one in images]
    what = described(measured_images, sources.found)
    log(f"measuring {what}")
    turns = Turns(len(images), rounds.warmup)

    def finished(done: int) -> None:
        turns.finished(done)
        progress(done)

    for index, (name, segmenter) in enumerate(segmenters):
        own = [one[index] for one in images]
        offered = stage_jobs(segmenter, own, turns)
        for stage in stages or settings.stages:
            if stage == DECODE and stage not in offered and not stages:
                continue
            if stage not in offered:
                raise UsageError(
                    f"{settings.name} has an unknown stage {stage!r}.",
                    fix=f"Known: {', '.join(offered)}.",
                )
            jobs[f"{name}\n{stage}"] = offered[stage]
            rows[f"{name}\n{stage}"] = _row(name, segmenter, stage, 1, known)
        for batch in batches if scenario == "offline" else ():
            key = f"{name}\nbatch {batch}"
            jobs[key] = _batch(segmenter, own, batch)
            rows[key] = _row(name, segmenter, COPIES, batch, known)
    with Watch("cuda" if on_gpu else "cpu", busy) as watch:
        measured = measure(jobs, rounds, progress=finished, watch=watch)
        others, state = watch.others, watch.gpu
    found = []
    for key, row in rows.items():
        samples = tuple(measured.samples[key])
        own_gpu = row.device.startswith("cuda")
        network = measured.samples.get(f"{row.engine}\n{NETWORK}")
        resident = None
        if own_gpu and network and row.stage == COPIES and row.batch == 1:
            resident = share_of(network, samples)
        evidence = Evidence(
            cv=variation(samples, len(images)),
            rounds=len(samples),
            others=others,
            gpu=state if own_gpu else None,
            host_share=share_of(measured.host[key], samples)
            if own_gpu and row.stage == NETWORK
            else None,
            copy_share=None if resident is None else 1 - resident,
            clock=clock_problem(samples),
        )
        verdict = judge(evidence, unstable_cv=settings.unstable_cv)
        found.append(replace(row, samples=samples, verdict=verdict, images=len(images)))
    served: list[Served] = []
    if scenario == "server":
        for name, segmenter in segmenters:
            served += _serve(name, segmenter, measured_images, rate, serve_seconds)
    return Report(
        machine,
        what,
        tuple(found),
        settings.unstable_cv,
        tuple(served),
        tuple(image.name for image in measured_images),
    )


def _row(name: str, segmenter: Segmenter, stage: str, batch: int, known: dict[str, float]) -> Row:
    engine = segmenter.engine
    return Row(name, engine.backend, engine.device, stage, (), batch, score=known.get(name))


def _batch(segmenter: Segmenter, images: Sequence[Prepared], batch: int) -> Job:
    inputs = np.stack([images[index % len(images)].inputs[0] for index in range(batch)])
    return Job(lambda: segmenter.engine.run(inputs))


def _serve(
    name: str,
    segmenter: Segmenter,
    images: Sequence[BenchImage],
    rate: float | None,
    seconds: float,
) -> list[Served]:
    """Answer requests end to end, one rate after the other; first measure the capacity."""
    turn = cycle(images)
    job = Job(lambda: segmenter.predict(next(turn).pixels))
    rounds = Rounds(max(CAPACITY_ROUNDS, len(images)), 2)
    times = measure({"one": job}, rounds).samples["one"]
    if found := no_clock(name, segmenter.engine.backend, times):
        return found
    capacity = 1000 / percentile(times, 50)
    for wanted in [rate] if rate is not None else [share * capacity for share in LOADS]:
        latencies, lost, total = serve(job.work, poisson_arrivals(wanted, seconds))
        backend = segmenter.engine.backend
        found.append(Served(name, backend, wanted, tuple(latencies), lost, total, QUEUE))
    return found
