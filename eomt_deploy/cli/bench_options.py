"""Options of `eomt-deploy bench`: one frozen configuration for each of its three modes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from eomt_deploy.cli.options import Arithmetic, Device, Threads

DEFAULT_IMAGE = Path(__file__).parent.parent / "assets" / "coffee.jpg"
REPEAT = "can be repeated"
PLOT = "plot_"
Waterfall = Annotated[
    Path | None,
    typer.Option(help="PNG file for a plot of the speed step by step, from the first row."),
]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What is written, in every mode."""

    plot_pareto: Annotated[
        Path | None, typer.Option(help="PNG file for a plot of images per second against score.")
    ] = None
    plot_latency: Annotated[
        Path | None, typer.Option(help="PNG file for histograms of the measured times.")
    ] = None
    plot_batches: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for a plot of images per second against batch size (--scenario offline)."
        ),
    ] = None
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all samples to this file (- for stdout).")
    ] = None

    @property
    def plots(self) -> dict[str, Path]:
        """The plots to draw: their files by kind."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith(PLOT)}
        return {name.removeprefix(PLOT): path for name, path in given.items() if path}


@dataclass(frozen=True, kw_only=True)
class _Measured(_Shown):
    """How something is measured."""

    image: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Image to measure with: file, folder, glob, http(s) address, @list.txt, - for "
            f"standard input, or a video file; {REPEAT} (default: an image of the package)."
        ),
    ] = (str(DEFAULT_IMAGE),)
    scope: Annotated[
        tuple[str, ...],
        typer.Option(help=f"What to time: network, network+copies or end-to-end; {REPEAT}."),
    ] = ()
    scenario: Annotated[str, typer.Option(help="single, offline (batches) or server.")] = "single"
    batch: Annotated[
        tuple[int, ...],
        typer.Option(help=f"Batch size of the offline scenario; {REPEAT} (default: 1, 2, 4, 8)."),
    ] = ()
    rate: Annotated[
        float | None, typer.Option(help="Request rate of the server scenario, per second, e.g. 20.")
    ] = None
    serve_seconds: Annotated[
        float | None,
        typer.Option(help="Duration of the server scenario per rate, in seconds (default: 20)."),
    ] = None
    iterations: Annotated[int | None, typer.Option(help="Number of measured iterations.")] = None
    warmup: Annotated[int | None, typer.Option(help="Minimum number of warm-up iterations.")] = None
    pause: Annotated[
        float | None, typer.Option(help="Pause before each round, in seconds (default: 0).")
    ] = None
    device: Device = None
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class EngineBench(_Measured):
    """`--engine`: model files, stage by stage."""

    engine: Annotated[
        tuple[Path, ...],
        typer.Option("--engine", help=f"Model file to measure; {REPEAT} to compare several."),
    ]
    backend: Annotated[
        tuple[str, ...],
        typer.Option(help="Backend by name: one for all engines, or repeated for each."),
    ] = ()
    arithmetic: Arithmetic = None
    score: Annotated[
        tuple[float, ...],
        typer.Option(help="Score of each engine in percent, e.g. 72.8, for the pareto plot."),
    ] = ()
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of pixels of an image, checked before decoding (default: "
            "100000000)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SuiteBench(_Measured):
    """`--suite`: a table of the paper, with our numbers beside the published ones."""

    suite: Annotated[str, typer.Option(help="Table of the paper to measure, e.g. table1.")]
    rows: Annotated[
        tuple[str, ...],
        typer.Option(help=f"Rows of the suite, separated by commas; {REPEAT} (default: all)."),
    ] = ()
    size: Annotated[
        str | None,
        typer.Option(help="Input size of all rows, e.g. 640 or 480x640 (default: their own)."),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(help="tiny, small, base, large or giant, for all rows (default: their own)."),
    ] = None
    runtime: Annotated[
        tuple[str, ...],
        typer.Option(help=f"torch-eager, torch-compile or a backend; {REPEAT}."),
    ] = ("torch-eager",)
    precision: Annotated[
        str | None, typer.Option(help="Precision: fp32, fp16, bf16, amp-fp16 or amp-bf16.")
    ] = None
    sampling: Annotated[
        str,
        typer.Option(help="Deformable attention of the baseline: grid_sample or triton (fused)."),
    ] = "grid_sample"
    seconds: Annotated[
        float | None,
        typer.Option(help="Maximum time of the measured rounds of a group, in seconds."),
    ] = None
    count_only: Annotated[
        bool,
        typer.Option("--count-only", help="Only count parameters and MACs, without timing."),
    ] = False
    plot_waterfall: Waterfall = None
    report_dir: Annotated[
        Path | None, typer.Option(help="Write JSON, Markdown and all plots into this folder.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReportBench(_Shown):
    """`--report`: results of an earlier measurement."""

    report: Annotated[
        Path, typer.Option(help="Show a JSON file that --suite wrote on another machine.")
    ]
    plot_waterfall: Waterfall = None
    report_dir: Annotated[
        Path | None, typer.Option(help="Write JSON, Markdown and all plots into this folder.")
    ] = None


MODES: dict[str, type[EngineBench] | type[SuiteBench] | type[ReportBench]] = {
    "engine": EngineBench,
    "suite": SuiteBench,
    "report": ReportBench,
}
