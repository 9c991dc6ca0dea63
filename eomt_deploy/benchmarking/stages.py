"""Benchmark of engines: each stage of a prediction, and the complete call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

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
from eomt_deploy.sources import load_image

NETWORK = "network"
COPIES = "network+copies"
END_TO_END = "end-to-end"


def stage_jobs(segmenter: Segmenter, image: Path) -> dict[str, Job]:
    """One job per stage, by name; the inputs of all stages are computed once.

    ``network`` has its inputs and outputs on the engine's device; on a CPU it is the same as
    ``network+copies``.

    Raises:
        VerificationError: the model returns NaN or infinite logits. It cannot be used, so it is
            not timed.
    """
    processor, engine = segmenter.processor, segmenter.engine
    limit = segmenter.max_pixels
    pixels = load_image(image, max_pixels=limit)
    images, geometry = processor.preprocess(pixels)
    class_logits, mask_logits = engine.run(images)
    check_finite(engine.spec, class_logits, mask_logits, backend=engine.backend, image=str(image))
    return {
        "decode": Job(lambda: load_image(image, max_pixels=limit)),
        "preprocess": Job(lambda: processor.preprocess(pixels)),
        NETWORK: network_job(engine, images),
        COPIES: Job(lambda: engine.run(images)),
        "postprocess": Job(lambda: processor.postprocess(class_logits, mask_logits, geometry)),
        END_TO_END: Job(lambda: segmenter.predict(image)),
    }


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
    image: Path,
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
) -> Report:
    """Measure stages of every engine in interleaved rounds.

    Args:
        segmenters: names and open segmenters.
        image: image that all engines get.
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

    Raises:
        UsageError: fewer than two rounds, or an unknown stage.
        VerificationError: a model returns NaN or infinite logits.
    """
    rounds = rounds or Rounds(settings.iterations, settings.warmup)
    machine = environment(threads)  # before our own load
    on_gpu = any(s.engine.device.startswith("cuda") for _, s in segmenters)
    known = dict(zip([name for name, _ in segmenters], scores, strict=False))
    jobs: dict[str, Job] = {}
    rows: dict[str, Row] = {}
    for name, segmenter in segmenters:
        offered = stage_jobs(segmenter, image)
        for stage in stages or settings.stages:
            if stage not in offered:
                raise UsageError(
                    f"{settings.name} has an unknown stage {stage!r}.",
                    fix=f"Known: {', '.join(offered)}.",
                )
            jobs[f"{name}\n{stage}"] = offered[stage]
            rows[f"{name}\n{stage}"] = _row(name, segmenter, stage, 1, known)
        for batch in batches if scenario == "offline" else ():
            key = f"{name}\nbatch {batch}"
            jobs[key] = _batch(segmenter, image, batch)
            rows[key] = _row(name, segmenter, COPIES, batch, known)
    with Watch("cuda" if on_gpu else "cpu", busy) as watch:
        measured = measure(jobs, rounds, progress=progress, watch=watch)
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
            cv=variation(samples),
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
        found.append(replace(row, samples=samples, verdict=verdict))
    served: list[Served] = []
    if scenario == "server":
        for name, segmenter in segmenters:
            served += _serve(name, segmenter, image, rate, serve_seconds)
    height, width = load_image(image, max_pixels=segmenters[0][1].max_pixels).shape[:2]
    return Report(
        machine,
        f"{image.name} ({height}x{width})",
        tuple(found),
        settings.unstable_cv,
        tuple(served),
    )


def _row(name: str, segmenter: Segmenter, stage: str, batch: int, known: dict[str, float]) -> Row:
    engine = segmenter.engine
    return Row(name, engine.backend, engine.device, stage, (), batch, score=known.get(name))


def _batch(segmenter: Segmenter, image: Path, batch: int) -> Job:
    pixels = load_image(image, max_pixels=segmenter.max_pixels)
    one = segmenter.processor.preprocess(pixels)[0][:1]
    images = np.repeat(one, batch, axis=0)
    return Job(lambda: segmenter.engine.run(images))


def _serve(
    name: str, segmenter: Segmenter, image: Path, rate: float | None, seconds: float
) -> list[Served]:
    """Answer requests end to end, one rate after the other; first measure the capacity."""
    pixels = load_image(image, max_pixels=segmenter.max_pixels)
    job = Job(lambda: segmenter.predict(pixels))
    times = measure({"one": job}, Rounds(10, 2)).samples["one"]
    if found := no_clock(name, segmenter.engine.backend, times):
        return found
    capacity = 1000 / percentile(times, 50)
    for wanted in [rate] if rate is not None else [share * capacity for share in LOADS]:
        latencies, lost, total = serve(job.work, poisson_arrivals(wanted, seconds))
        backend = segmenter.engine.backend
        found.append(Served(name, backend, wanted, tuple(latencies), lost, total, QUEUE))
    return found
