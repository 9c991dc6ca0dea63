"""`eomt-deploy bench`: how fast, stage by stage, and whether to believe it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from eomt_deploy import catalog
from eomt_deploy.cli.console import bar, check_report, say, stdout, warn, write_json
from eomt_deploy.errors import UsageError

if TYPE_CHECKING:
    from eomt_deploy.benchmarking import Report

DEFAULT_PLAN = "stages"
DEFAULT_IMAGE = Path(__file__).parent.parent / "assets" / "coffee.jpg"


def bench(
    engine: Annotated[
        list[Path], typer.Option("--engine", help="Exported model; repeat it to compare.")
    ],
    image: Annotated[
        Path | None, typer.Option(help="Photo to measure with; one is built in.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Measured rounds.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Rounds before them.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; best by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all samples here (- for stdout).")
    ] = None,
) -> None:
    """Measure decode, preprocess, network, postprocess and the whole call, interleaved."""
    from eomt_deploy.benchmarking import bench_stages
    from eomt_deploy.segmenter import Segmenter

    plan = catalog.benchmark_plans()[DEFAULT_PLAN]
    if len(set(engine)) < len(engine):
        raise UsageError("An engine is named twice.", fix="Copy the file to compare it to itself.")
    if json:
        check_report(json, *engine)
    rounds = (plan.warmup if warmup is None else warmup) + (iterations or plan.iterations)
    # File names are enough to tell most engines apart; whole paths make the table unreadable.
    distinct = len({path.name for path in engine}) == len(engine)
    with ExitStack() as stack:
        segmenters = [
            (
                path.name if distinct else str(path),
                stack.enter_context(Segmenter(path, device=device, threads=threads)),
            )
            for path in engine
        ]
        with bar("measuring", rounds) as progress:
            report = bench_stages(
                segmenters,
                image or DEFAULT_IMAGE,
                plan,
                warmup=warmup,
                iterations=iterations,
                threads=threads,
                progress=progress,
            )
    if str(json) != "-":
        _show(report)
    if json:
        write_json(json, report.to_dict())
    for warning in report.warnings:
        warn(warning)


def _show(report: Report) -> None:
    machine = report.environment
    threads = machine["threads"] or "run-time's choice of"
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    say(f"{report.image} on {machine['cpu']}, {machine['cores']} cores, {threads} threads, {gpus}")
    table = Table(box=None)
    for name in ("engine", "on", "stage"):
        table.add_column(name, overflow="fold")
    for name in ("p50 ms", "p90", "p95", "p99", "variation", "FPS"):
        table.add_column(name, justify="right")
    previous = ""
    for row in report.rows:
        table.add_row(
            row.engine if row.engine != previous else "",
            f"{row.backend} {row.device}" if row.engine != previous else "",
            row.stage,
            *(f"{row.percentile(p):.2f}" for p in (50, 90, 95, 99)),
            f"{row.cv:.1%}",
            f"{row.fps:.1f}",
        )
        previous = row.engine
    stdout.print(table)
