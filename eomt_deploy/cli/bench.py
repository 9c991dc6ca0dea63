"""`eomt-deploy bench`: engines stage by stage, tables of the paper, or an earlier report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eomt_deploy.benchmarking.images import input_files
from eomt_deploy.benchmarking.paper.suite_file import suites
from eomt_deploy.cli.bench_engines import bench_engines
from eomt_deploy.cli.bench_options import MODES, EngineBench, ReportBench, SuiteBench
from eomt_deploy.cli.bench_suite import bench_report, bench_suite, report_files
from eomt_deploy.cli.options import Overwrite, make_config, options_of, with_options
from eomt_deploy.errors import UsageError
from eomt_deploy.outputs import check_outputs

HINTS = {"seconds": "Use --iterations to choose how long engines are measured."}
"""How to fix an option that is used in the wrong mode."""


def bench(overwrite: Overwrite = False, **given: Any) -> None:
    """Measure engines stage by stage, or a table of the paper."""
    chosen = [mode for mode in MODES if given.get(mode)]
    if len(chosen) != 1:
        raise UsageError(
            "bench needs exactly one of --engine FILE, --suite NAME and --report FILE, got "
            f"{' and '.join(f'--{mode}' for mode in chosen) or 'none'}.",
            fix="Pass one, e.g. --engine model.onnx or --suite table1. Suites: "
            f"{', '.join(suites())}.",
        )
    config = make_config(MODES[chosen[0]], given, chosen[0], MODES, HINTS)
    check_outputs(_outputs(config), inputs=_inputs(config), overwrite=overwrite)
    if isinstance(config, EngineBench):
        bench_engines(config)
    elif isinstance(config, SuiteBench):
        bench_suite(config)
    else:
        bench_report(config)


def _inputs(config: EngineBench | SuiteBench | ReportBench) -> list[Path]:
    if isinstance(config, ReportBench):
        return [config.report]
    engines = config.engine if isinstance(config, EngineBench) else ()
    return [*input_files(config.image), *engines]


def _outputs(config: EngineBench | SuiteBench | ReportBench) -> dict[str, Path | None]:
    """Files that are written, by their name in messages."""
    targets: dict[str, Path | None] = {"--json": config.json}
    targets |= {f"--plot-{kind}": path for kind, path in config.plots.items()}
    if not isinstance(config, EngineBench) and config.report_dir:
        names = report_files(config.report_dir)
        targets |= {f"--report-dir ({path.name})": path for path in names}
    return targets


_OPTIONS = options_of(*MODES.values())
command = with_options(bench, {mode: _OPTIONS[mode] for mode in MODES} | _OPTIONS)
