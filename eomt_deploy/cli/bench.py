"""`eomt-deploy bench`: engines stage by stage, tables of the paper, or a report made elsewhere."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eomt_deploy import catalog
from eomt_deploy.cli.bench_suite import (
    BenchOptions,
    bench_report,
    bench_suite,
    print_sheet,
    report_files,
)
from eomt_deploy.cli.console import bar, say, say_remarks, stderr, warn, write_json
from eomt_deploy.cli.options import MaxPixels, Overwrite
from eomt_deploy.errors import UsageError
from eomt_deploy.outputs import check_outputs

if TYPE_CHECKING:
    from eomt_deploy.benchmarking import Report

DEFAULT_PLAN = "stages"
DEFAULT_IMAGE = Path(__file__).parent.parent / "assets" / "coffee.jpg"
SUITE_ONLY = (
    "rows", "size", "backbone", "runtime", "precision", "sampling", "count_only", "report_dir",
    "seconds",
)  # fmt: skip
ENGINE_ONLY = ("score", "backend", "max_pixels")
MEASURING = (
    "image", "iterations", "warmup", "pause", "device", "threads", "scope", "scenario", "batch",
    "rate", "serve_seconds",
)  # fmt: skip


def bench(
    engine: Annotated[
        list[Path] | None, typer.Option("--engine", help="Exported model; repeat it to compare.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A table of the paper, as table1.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Show a JSON of --suite that was made elsewhere.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Photo to measure with; one is built in.")
    ] = None,
    max_pixels: MaxPixels = None,
    rows: Annotated[
        list[str] | None, typer.Option(help="Rows of the suite; repeat, or use commas.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="640 or 480x640 instead of the rows' own.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="tiny, small, base, large or giant, for all rows.")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="torch-eager, torch-compile, …; repeat it.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16, amp-fp16 or amp-bf16.")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="The baseline's deformable attention: grid_sample, or triton (fused)."),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="network, network+copies, end-to-end; repeat it.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="single (default), offline (batches) or server.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images of one call, offline; repeat it.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, server.")] = None,
    serve_seconds: Annotated[
        float | None, typer.Option(help="How long each rate is served, server.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Measured rounds.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Rounds before them, at least.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="End the measured rounds of a group after this time.")
    ] = None,
    pause: Annotated[float | None, typer.Option(help="Seconds of rest before each round.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Run-time by name: one for all engines, or repeated for each."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; best by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    score: Annotated[
        list[float] | None, typer.Option(help="Score of each engine in percent, for --plot.")
    ] = None,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="Parameters and MACs; time nothing.")
    ] = False,
    plot: Annotated[
        list[Path] | None,
        typer.Option(help="waterfall.png, pareto.png, latency.png or batches.png; repeat it."),
    ] = None,
    report_dir: Annotated[
        Path | None, typer.Option(help="Write JSON, Markdown and all plots into this folder.")
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all samples here (- for stdout).")
    ] = None,
) -> None:
    """Measure engines stage by stage, or a table of the paper beside the paper's numbers."""
    given = {
        name: value for name, value in locals().items() if value is not None and value is not False
    }
    if sum(name in given for name in ("engine", "suite", "report")) != 1:
        raise UsageError(
            "Name what to measure: --engine FILE, --suite NAME or --report FILE, one of them.",
            fix=f"Suites: {', '.join(catalog.suites())}.",
        )
    mode = next(name for name in ("engine", "suite", "report") if name in given)
    barred = {"engine": SUITE_ONLY, "suite": ENGINE_ONLY, "report": ()}[mode]
    if mode == "report":
        barred = (*(n for n in SUITE_ONLY if n != "report_dir"), *ENGINE_ONLY, *MEASURING)
    for name in barred:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} does not go with --{mode}.")
    targets: dict[str, Path | None] = {"--json": json}
    targets |= {f"--plot {path}": path for path in plot or ()}
    if report_dir:
        targets |= {f"--report-dir ({path.name})": path for path in report_files(report_dir)}
    check_outputs(targets, inputs=[*(engine or ()), report, image], overwrite=overwrite)
    if engine:
        _bench_engines(engine, given)
    else:
        options = BenchOptions(**{n: v for n, v in given.items() if n in BenchOptions.names()})
        if options.report is not None:
            bench_report(options)
        else:
            bench_suite(options, image or DEFAULT_IMAGE)


def _bench_engines(engine: list[Path], given: dict[str, Any]) -> None:
    from eomt_deploy.benchmarking import bench_stages
    from eomt_deploy.benchmarking.machine.watch import gpu_load
    from eomt_deploy.benchmarking.measure.clock import Rounds
    from eomt_deploy.segmenter import Segmenter

    plan = catalog.benchmark_plans()[DEFAULT_PLAN]
    backends = _backends(given.get("backend", []), len(engine))
    if len(set(zip(engine, backends, strict=True))) < len(engine):
        raise UsageError("An engine is named twice.", fix="Copy the file to compare it to itself.")
    scores = given.get("score", [])
    if scores and (len(scores) != len(engine) or not all(map(math.isfinite, scores))):
        raise UsageError("--score is for each engine once, in their order, in percent.")
    scenario = _scenario(given)
    plots = given.get("plot", [])
    if plots:
        from eomt_deploy.benchmarking.engine_plots import check_engine_plots

        check_engine_plots(plots, scenario)
    asked = Rounds(  # before the engines are opened: what is absurd is refused at once
        given.get("iterations", plan.iterations),
        given.get("warmup", plan.warmup),
        pause=given.get("pause", 0.0),
    )
    rounds = asked.warmup + asked.iterations
    # File names are enough to tell most engines apart; whole paths make the table unreadable.
    distinct = len({path.name for path in engine}) == len(set(engine))
    device, threads = given.get("device"), given.get("threads")
    busy = gpu_load()  # before the load that we make ourselves
    with ExitStack() as stack:
        segmenters = [
            (
                (path.name if distinct else str(path)) + (f"@{backend}" if backend else ""),
                stack.enter_context(
                    Segmenter(
                        path,
                        backend=backend,
                        device=device,
                        threads=threads,
                        max_pixels=given.get("max_pixels"),
                    )
                ),
            )
            for path, backend in zip(engine, backends, strict=True)
        ]
        for name, segmenter in segmenters:
            say(f"{name}: {segmenter.engine.where}", stderr)
            say_remarks(segmenter.engine, name)
        with bar("measuring", rounds) as progress:
            report = bench_stages(
                segmenters,
                given.get("image", DEFAULT_IMAGE),
                plan,
                stages=given.get("scope", ()),
                scenario=scenario,
                batches=given.get("batch", (1, 2, 4, 8)),
                rate=given.get("rate"),
                serve_seconds=given.get("serve_seconds", 20.0),
                scores=scores,
                warmup=given.get("warmup"),
                iterations=given.get("iterations"),
                pause=given.get("pause", 0.0),
                threads=threads,
                busy=busy,
                progress=progress,
            )
    json = given.get("json")
    if str(json) != "-":
        _show(report)
    if json:
        write_json(json, report.to_dict())
    for path in plots:
        from eomt_deploy.benchmarking.engine_plots import draw_engines
        from eomt_deploy.files import write_atomically

        write_atomically(path, draw_engines(path.stem, report))
        if str(json) != "-":
            say(f"wrote {path}")
    for warning in report.warnings:
        warn(warning)


def _backends(asked: list[str], engines: int) -> list[str | None]:
    """The run-time of every engine; None where it is not asked for."""
    if len(asked) not in (0, 1, engines):
        raise UsageError(
            f"--backend is given {len(asked)} times for {engines} engines.",
            fix="Give one for all, or one for each --engine, in their order.",
        )
    if len(asked) == engines:
        return list(asked)
    return [asked[0] if asked else None] * engines


def _scenario(given: dict[str, Any]) -> Any:
    from eomt_deploy.benchmarking.measure.scenarios import check_scenario

    return check_scenario(
        given.get("scenario", "single"), given.get("batch"), given.get("rate"),
        given.get("serve_seconds"),
    )  # fmt: skip


def _show(report: Report) -> None:
    from eomt_deploy.benchmarking.tables import engine_sheet, served_sheet

    machine = report.environment
    threads = machine["threads"] or "run-time's choice of"
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    say(f"{report.image} on {machine['cpu']}, {machine['cores']} cores, {threads} threads, {gpus}")
    print_sheet(engine_sheet(report))
    if report.served:
        print_sheet(served_sheet(report.served))
