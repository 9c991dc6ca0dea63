"""`eomt-deploy bench --engine`: model files, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from eomt_deploy.cli.bench_options import EngineBench
from eomt_deploy.cli.bench_suite import print_sheet, say_rounds
from eomt_deploy.cli.console import bar, ending_with, say, say_remarks, stderr, warn, write_json
from eomt_deploy.errors import UsageError

if TYPE_CHECKING:
    from eomt_deploy.benchmarking import Report
    from eomt_deploy.segmenter import Segmenter

OFFLINE_BATCHES = (1, 2, 4, 8)


def bench_engines(config: EngineBench) -> None:
    """Measure engines in turn, and show the report."""
    from eomt_deploy.benchmarking.images import bench_sources
    from eomt_deploy.benchmarking.machine.watch import gpu_load
    from eomt_deploy.benchmarking.measure.clock import Rounds
    from eomt_deploy.benchmarking.measure.scenarios import check_scenario
    from eomt_deploy.benchmarking.stages import bench_stages, stage_settings

    settings = stage_settings()
    _check_engines(config)
    scenario = check_scenario(
        config.scenario, list(config.batch) or None, config.rate, config.serve_seconds
    )
    if config.plots:
        from eomt_deploy.benchmarking.engine_plots import check_engine_plots

        check_engine_plots(config.plots, scenario)
    rounds = Rounds(  # before the engines are opened, so that invalid values fail at once
        settings.iterations if config.iterations is None else config.iterations,
        settings.warmup if config.warmup is None else config.warmup,
        pause=config.pause or 0.0,
    )
    sources = bench_sources(config.image, config.max_pixels)
    say_rounds(rounds)
    busy = gpu_load()  # before our own load
    with (
        ending_with(sources.note),
        _open(config) as segmenters,
        bar("measuring", rounds.warmup + rounds.iterations) as progress,
    ):
        report = bench_stages(
            segmenters,
            sources,
            settings,
            rounds,
            stages=config.scope,
            scenario=scenario,
            batches=config.batch or OFFLINE_BATCHES,
            rate=config.rate,
            serve_seconds=20.0 if config.serve_seconds is None else config.serve_seconds,
            scores=config.score,
            threads=config.threads,
            busy=busy,
            progress=progress,
            log=lambda text: say(text, stderr),
        )
    _publish(config, report)


def _check_engines(config: EngineBench) -> None:
    """Check the options that depend on the number of engines.

    Raises:
        UsageError: they do not match it.
    """
    engines, backends, scores = len(config.engine), len(config.backend), config.score
    if backends not in (0, 1, engines):
        raise UsageError(
            f"--backend is given {backends} times for {engines} engines.",
            fix="Pass --backend once, or once for each --engine, in the same order.",
        )
    if len(set(zip(config.engine, _backends(config), strict=True))) < engines:
        raise UsageError(
            "The same engine is given twice.", fix="Copy the file to compare it with itself."
        )
    if scores and (len(scores) != engines or not all(map(math.isfinite, scores))):
        raise UsageError(
            f"--score must be given once for each engine, in percent: {engines} engines, "
            f"{len(scores)} scores.",
            fix="Repeat --score in the order of --engine, e.g. --score 72.8 --score 72.7.",
        )


def _backends(config: EngineBench) -> tuple[str | None, ...]:
    """The backend of each engine; None if it is not requested."""
    if len(config.backend) == len(config.engine):
        return config.backend
    return (config.backend[0] if config.backend else None,) * len(config.engine)


@contextmanager
def _open(config: EngineBench) -> Iterator[list[tuple[str, Segmenter]]]:
    """The engines, open, with their names in the report."""
    from eomt_deploy.segmenter import Segmenter

    # File names are enough to distinguish most engines; paths make the table unreadable.
    distinct = len({path.name for path in config.engine}) == len(set(config.engine))
    with ExitStack() as stack:
        segmenters = []
        for path, backend in zip(config.engine, _backends(config), strict=True):
            segmenter = Segmenter(
                path,
                backend=backend,
                device=config.device,
                threads=config.threads,
                arithmetic=config.arithmetic,
                max_pixels=config.max_pixels,
            )
            name = path.name if distinct else str(path)
            if backend:
                name += f"@{backend}"
            segmenters.append((name, stack.enter_context(segmenter)))
            say(f"{name}: {segmenter.engine.where}", stderr)
            say_remarks(segmenter.engine, name)
        yield segmenters


def _publish(config: EngineBench, report: Report) -> None:
    quiet = str(config.json) == "-"
    if not quiet:
        _show(report)
    if config.json:
        write_json(config.json, report.to_dict())
    for kind, path in config.plots.items():
        from eomt_deploy.benchmarking.engine_plots import draw_engines
        from eomt_deploy.files import write_atomically

        write_atomically(path, draw_engines(kind, report))
        if not quiet:
            say(f"wrote {path}")
    for warning in report.warnings:
        warn(warning)


def _show(report: Report) -> None:
    from eomt_deploy.benchmarking.tables import engine_sheet, served_sheet

    machine = report.environment
    threads = machine["threads"] or "the backend's choice of"
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    say(f"{report.image} on {machine['cpu']}, {machine['cores']} cores, {threads} threads, {gpus}")
    print_sheet(engine_sheet(report))
    if report.served:
        print_sheet(served_sheet(report.served))
