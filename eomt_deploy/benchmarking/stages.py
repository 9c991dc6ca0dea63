"""Every stage of a prediction apart, then the whole call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eomt_deploy.benchmarking.clock import Work, interleave
from eomt_deploy.benchmarking.environment import environment
from eomt_deploy.benchmarking.report import Report, Row
from eomt_deploy.catalog import BenchmarkPlan
from eomt_deploy.errors import UsageError
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import load_image


def stage_works(segmenter: Segmenter, image: Path) -> dict[str, Work]:
    """One function per stage; each gets what the stage before it made, made once."""
    processor, engine = segmenter.processor, segmenter.engine
    pixels = load_image(image)
    images, geometry = processor.preprocess(pixels)
    class_logits, mask_logits = engine.run(images)
    return {
        "decode": lambda: load_image(image),
        "preprocess": lambda: processor.preprocess(pixels),
        "network": lambda: engine.run(images),
        "postprocess": lambda: processor.postprocess(class_logits, mask_logits, geometry),
        "end-to-end": lambda: segmenter.predict(image),
    }


def bench_stages(
    segmenters: Sequence[tuple[str, Segmenter]],
    image: Path,
    plan: BenchmarkPlan,
    *,
    warmup: int | None = None,
    iterations: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Measure the plan's stages of every engine, interleaved.

    Args:
        segmenters: names and open segmenters.
        image: the picture that all of them get.
        plan: stages, rounds and the limit of stability.
        warmup, iterations: rounds, where they are not the plan's.
        threads: CPU threads asked for, for the record.
        progress: told each finished round.

    Raises:
        UsageError: fewer than two rounds, or a stage that does not exist.
    """
    warmup = plan.warmup if warmup is None else warmup
    iterations = plan.iterations if iterations is None else iterations
    if iterations < 2 or warmup < 0:
        raise UsageError(
            f"{warmup} warm-up and {iterations} measured rounds say nothing.",
            fix="Measure at least 2 rounds, better 20.",
        )
    machine = environment(threads)  # before the load that we make ourselves
    works: dict[str, Work] = {}
    rows_of: dict[str, tuple[str, Segmenter, str]] = {}
    for name, segmenter in segmenters:
        stages = stage_works(segmenter, image)
        for stage in plan.stages:
            if stage not in stages:
                raise UsageError(
                    f"{plan.name} has an unknown stage {stage!r}.",
                    fix=f"Known: {', '.join(stages)}.",
                )
            key = f"{name}\n{stage}"
            works[key] = stages[stage]
            rows_of[key] = (name, segmenter, stage)
    samples = interleave(works, warmup=warmup, iterations=iterations, progress=progress)
    height, width = load_image(image).shape[:2]
    return Report(
        environment=machine,
        image=f"{image.name} ({height}x{width})",
        rows=tuple(
            Row(name, segmenter.engine.backend, segmenter.engine.device, stage, tuple(samples[key]))
            for key, (name, segmenter, stage) in rows_of.items()
        ),
        unstable_cv=plan.unstable_cv,
    )
