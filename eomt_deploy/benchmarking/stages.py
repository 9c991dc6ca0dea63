"""Every stage of a prediction apart, then the whole call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.machine.watch import Watch
from eomt_deploy.benchmarking.measure.clock import Job, Rounds, measure
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
from eomt_deploy.errors import UsageError
from eomt_deploy.processing.outputs import check_finite
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import load_image

if TYPE_CHECKING:
    from eomt_deploy.catalog import BenchmarkPlan

NETWORK = "network"
COPIES = "network+copies"
WHOLE = "end-to-end"


def stage_jobs(segmenter: Segmenter, image: Path) -> dict[str, Job]:
    """One job per stage; each gets what the stage before it made, made once.

    ``network`` takes inputs that are on the engine's device and leaves the outputs there; on a
    CPU it is the same as ``network+copies``.

    Raises:
        VerificationError: the model gives NaN or infinite logits: its times would be published for
            a model that cannot be used.
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
        NETWORK: _network(engine, images),
        COPIES: Job(lambda: engine.run(images)),
        "postprocess": Job(lambda: processor.postprocess(class_logits, mask_logits, geometry)),
        WHOLE: Job(lambda: segmenter.predict(image)),
    }


def _network(engine: Any, images: Any) -> Job:
    if not hasattr(engine, "run_device"):
        return Job(lambda: engine.run(images))
    from eomt_deploy.benchmarking.measure.gpu_clock import DeviceEventTimer

    resident = engine.input(len(images))
    with engine.gpu.active():
        engine.gpu.to_device(resident.pointer, np.ascontiguousarray(images), engine.stream)
        engine.gpu.synchronize(engine.stream)
    return Job(lambda: engine.run_device(resident), DeviceEventTimer(engine))


def bench_stages(
    segmenters: Sequence[tuple[str, Segmenter]],
    image: Path,
    plan: BenchmarkPlan,
    *,
    stages: Sequence[str] = (),
    scenario: Scenario = "single",
    batches: Sequence[int] = (1,),
    rate: float | None = None,
    serve_seconds: float = 20.0,
    scores: Sequence[float] = (),
    warmup: int | None = None,
    iterations: int | None = None,
    pause: float = 0.0,
    threads: int | None = None,
    busy: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Measure stages of every engine, interleaved.

    Args:
        segmenters: names and open segmenters.
        image: the picture that all of them get.
        plan: stages, rounds and the limit of stability.
        stages: instead of the plan's; scopes are stages, too.
        scenario: ``offline`` also runs the engines on ``batches``; ``server`` also answers
            requests that come at ``rate``, end to end.
        rate: requests a second; None tries shares of what one stream does.
        serve_seconds: of each rate.
        scores: of the engines, in percent, in their order; none where they are not known.
        warmup, iterations: rounds, where they are not the plan's.
        pause: seconds of rest before each round, against heat.
        threads: CPU threads asked for, for the record.
        busy: load of the GPU before the engines were opened, see
            :func:`eomt_deploy.benchmarking.machine.watch.gpu_load`.
        progress: told each finished round.

    Raises:
        UsageError: fewer than two rounds, or a stage that does not exist.
        VerificationError: a model gives NaN or infinite logits.
    """
    rounds = Rounds(
        plan.iterations if iterations is None else iterations,
        plan.warmup if warmup is None else warmup,
        pause=pause,
    )
    machine = environment(threads)  # before the load that we make ourselves
    on_gpu = any(s.engine.device.startswith("cuda") for _, s in segmenters)
    known = dict(zip([name for name, _ in segmenters], scores, strict=False))
    jobs: dict[str, Job] = {}
    rows: dict[str, Row] = {}
    for name, segmenter in segmenters:
        offered = stage_jobs(segmenter, image)
        for stage in stages or plan.stages:
            if stage not in offered:
                raise UsageError(
                    f"{plan.name} has an unknown stage {stage!r}.",
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
        verdict = judge(evidence, unstable_cv=plan.unstable_cv)
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
        plan.unstable_cv,
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
    """End to end, one rate after the other; the first call tells what one stream can do."""
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
