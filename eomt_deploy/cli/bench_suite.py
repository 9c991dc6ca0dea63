"""`eomt-deploy bench --suite` and `--report`: tables of the paper, with our numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from eomt_deploy.benchmarking.paper.suite_file import find_suite
from eomt_deploy.cli.bench_options import ReportBench, SuiteBench
from eomt_deploy.cli.console import (
    bar,
    parse_size,
    print_json,
    say,
    stderr,
    stdout,
    warn,
    write_json,
)
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.files import GENERATOR, write_atomically
from eomt_deploy.outputs import is_ours

if TYPE_CHECKING:
    from eomt_deploy.benchmarking import SuiteReport
    from eomt_deploy.benchmarking.measure.clock import Rounds
    from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig
    from eomt_deploy.benchmarking.tables import Sheet
    from eomt_deploy.sources import RgbImage


def bench_suite(options: SuiteBench) -> None:
    """Count or measure a suite, and show the report."""
    suite = find_suite(options.suite)
    if options.count_only:
        _count(options)
        return
    from eomt_deploy.benchmarking.paper.suite import run_suite
    from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig

    scenario = _scenario(options)
    offline = scenario == "offline"
    scopes = _split(options.scope) or ("network",)
    config = SuiteConfig(
        suite=suite,
        rows=_split(options.rows),
        size=parse_size(options.size),
        backbone=options.backbone,
        runtimes=_split(options.runtime),
        scopes=scopes,
        scenario=scenario,
        batches=tuple(options.batch) or ((1, 2, 4, 8) if offline else (1,)),
        rate=options.rate,
        serve_seconds=20.0 if options.serve_seconds is None else options.serve_seconds,
        device=options.device,
        precision=options.precision,
        rounds=None,
        threads=options.threads,
        sampling=options.sampling,
        image=_image(options) if "end-to-end" in scopes else None,
    )
    config = _with_rounds(config, options)
    _check_outputs(options)
    if config.rounds:
        say_rounds(config.rounds)
    total = (config.rounds.iterations + (config.rounds.max_warmup or 0)) if config.rounds else 0
    with bar("measuring", total) as progress:
        report = run_suite(
            config, log=lambda text: say(text, stderr), progress=progress,
            save=lambda found: _save([found], options),
        )  # fmt: skip
    _publish([report], options)
    if not report.measurements:
        raise UsageError(
            "No row could be measured: "
            + "; ".join(f"{s.row} in {s.runtime}: {s.reason}" for s in report.skipped[:3]),
            fix="Choose other rows, a smaller --size or another --runtime.",
        )


def _image(options: SuiteBench) -> RgbImage:
    """The first image: the networks have random weights, so that one is enough."""
    from eomt_deploy.benchmarking.images import bench_sources

    sources = bench_sources(options.image)
    image = next(sources.read(1))
    if sources.found != 1:
        say(f"a suite uses one image: {image.name} ({image.size})", stderr)
    return image.pixels


def bench_report(options: ReportBench) -> None:
    """Show the results of an earlier measurement."""
    from eomt_deploy.benchmarking.paper.report import read_reports

    reports = read_reports(options.report)
    _check_outputs(options)
    _publish(reports, options)


def say_rounds(rounds: Rounds) -> None:
    """Print how many rounds follow, and warn if they are too few."""
    from eomt_deploy.benchmarking.measure.clock import rounds_line
    from eomt_deploy.benchmarking.measure.verdict import MIN_ROUNDS

    say(f"each row: {rounds_line(rounds, MIN_ROUNDS)}", stderr)
    if rounds.iterations < MIN_ROUNDS:
        warn(
            f"{rounds.iterations} rounds are too few for a valid result; use --iterations "
            f"{MIN_ROUNDS} or more"
        )


def print_sheet(sheet: Sheet) -> None:
    """Print a table on the terminal."""
    say("")
    say(sheet.title)
    table = Table(box=None)
    for index, name in enumerate(sheet.headers):
        words = index < sheet.words
        justify: Literal["left", "right"] = "left" if words else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not words)
    for row in sheet.rows:
        table.add_row(*row)
    stdout.print(table)


def _count(options: SuiteBench) -> None:
    """Show parameters and MACs of the rows beside those of the paper."""
    suite = find_suite(options.suite)
    rows = suite.select(_split(options.rows), parse_size(options.size), options.backbone)
    try:
        from eomt_deploy.benchmarking.paper.counting import count_step
    except ImportError as error:
        raise MissingDependencyError(
            f"Counting parameters and MACs needs {error.name}, which is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error
    from eomt_deploy.benchmarking.tables import count_sheet

    found = []
    with bar("counting", len(rows)) as progress:
        for row in rows:
            assert row.step is not None  # Suite.select leaves quoted rows out
            counts = count_step(
                row.step, row.backbone, size=row.size, queries=row.queries, classes=row.classes
            )
            found.append((row, counts.params, counts.macs * row.inputs))
            progress(len(found))
    data = [
        {"name": row.name, "step": row.step, "backbone": row.backbone, "size": list(row.size)}
        | {"params": params, "macs": macs}
        for row, params, macs in found
    ]
    if str(options.json) != "-":
        print_sheet(count_sheet(suite, found))
    if options.json:
        write_json(options.json, {"schema": 1, "kind": "counts", "suite": suite.name, "rows": data})


def _publish(reports: list[SuiteReport], options: SuiteBench | ReportBench) -> None:
    from eomt_deploy.benchmarking import tables

    quiet = str(options.json) == "-"
    if not quiet:
        for report in reports:
            say(tables.machine_line(report))
            for sheet in tables.sheets(report):
                print_sheet(sheet)
            say("")
            for line in tables.remarks(report):
                say(f"- {line}")
    if str(options.json) == "-":
        print_json(_to_json(reports))
    _save(reports, options)
    if options.report_dir:
        text = "\n".join(tables.markdown(report) for report in reports)
        mark = f"<!-- {GENERATOR} -->\n\n"
        write_atomically(options.report_dir / "report.md", (mark + text).encode())
        say(f"wrote {options.report_dir / 'report.json'} and report.md", stderr)
    pictures = [(kind, path) for kind, path in options.plots.items()]
    if pictures or options.report_dir:
        from eomt_deploy.benchmarking.paper.plots import draw, drawable

        if options.report_dir:
            pictures += [(kind, options.report_dir / f"{kind}.png") for kind in drawable(reports)]
            # Plots of an earlier report do not match the numbers of this one.
            for old in set(report_files(options.report_dir)) - {path for _, path in pictures}:
                if old.suffix == ".png" and is_ours(old):
                    old.unlink()
        for kind, path in pictures:  # last: everything else is written even if a plot fails
            write_atomically(path, draw(kind, reports))
            say(f"wrote {path}", stderr)


def _to_json(reports: list[SuiteReport]) -> Any:
    data = [report.to_dict() for report in reports]
    return data[0] if len(data) == 1 else {"schema": 1, "kind": "sections", "sections": data}


def _save(reports: list[SuiteReport], options: SuiteBench | ReportBench) -> None:
    """Write the numbers as soon as there are some, so that a stopped run keeps them."""
    if options.json and str(options.json) != "-":
        write_json(options.json, _to_json(reports))
    if options.report_dir:
        write_json(options.report_dir / "report.json", _to_json(reports))


def report_files(folder: Path) -> list[Path]:
    """Every file that --report-dir may write."""
    from eomt_deploy.benchmarking.paper.plots import NAMES

    return [folder / "report.json", folder / "report.md", *(folder / f"{n}.png" for n in NAMES)]


def _check_outputs(options: SuiteBench | ReportBench) -> None:
    """Check the outputs before the measurement."""
    if options.plots or options.report_dir:
        from eomt_deploy.benchmarking.paper.plots import check_matplotlib, check_png

        check_png(options.plots)
        other = isinstance(options, SuiteBench) and (options.size or options.backbone)
        if other and options.plot_pareto:
            raise UsageError(
                "A pareto plot shows the paper's scores, which are not valid for another size or "
                "backbone.",
                fix="Leave out --size and --backbone, or --plot-pareto.",
            )
        check_matplotlib()


def _scenario(options: SuiteBench) -> Any:
    from eomt_deploy.benchmarking.measure.scenarios import check_scenario

    return check_scenario(
        options.scenario, list(options.batch) or None, options.rate, options.serve_seconds
    )


def _with_rounds(config: SuiteConfig, options: SuiteBench) -> SuiteConfig:
    """The default rounds of the device, changed by the options."""
    from dataclasses import replace

    from eomt_deploy.benchmarking.paper.suite import choose_device
    from eomt_deploy.benchmarking.paper.suite_config import CPU_ROUNDS, GPU_ROUNDS

    usual = GPU_ROUNDS if choose_device(config.device) == "cuda" else CPU_ROUNDS
    rounds = replace(
        usual,
        iterations=usual.iterations if options.iterations is None else options.iterations,
        seconds=usual.seconds if options.seconds is None else options.seconds,
        pause=0.0 if options.pause is None else options.pause,
    )
    if options.warmup is not None:
        maximum = max(options.warmup, usual.max_warmup or 0)
        rounds = replace(rounds, warmup=options.warmup, max_warmup=maximum)
    if options.warmup == 0:
        warn("without a warm-up the slower first calls are measured, too")
        rounds = replace(rounds, max_warmup=None)
    return replace(config, rounds=rounds)


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    """Split at commas: ``("step 0,step 5", "step 4")`` -> three names, without duplicates."""
    names = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))
