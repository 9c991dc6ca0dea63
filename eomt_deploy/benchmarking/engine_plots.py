"""Plots of an engine benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from eomt_deploy.benchmarking.measure.scenarios import Scenario
from eomt_deploy.benchmarking.paper.plots import (
    COLOURS,
    check_matplotlib,
    check_png,
    draw_front,
    new_axes,
    new_panels,
    png,
)
from eomt_deploy.benchmarking.report import Report, Row
from eomt_deploy.errors import UsageError


def check_engine_plots(plots: Mapping[str, Path], scenario: Scenario) -> None:
    """Check before the benchmark that its plots (files by kind) can be drawn.

    Raises:
        UsageError: a file is not a PNG file, or the scenario does not have that plot.
        MissingDependencyError: matplotlib is missing.
    """
    check_png(plots)
    if "batches" in plots and scenario != "offline":
        raise UsageError(
            f"--plot-batches needs --scenario offline, got {scenario}.",
            why="Only that scenario measures several batch sizes.",
            fix="Add --scenario offline, or leave this plot out.",
        )
    check_matplotlib()


def draw_engines(kind: str, report: Report) -> bytes:
    """The plot ``pareto``, ``latency`` or ``batches`` as PNG; rows with invalid times are left out.

    Raises:
        UsageError: no row has valid times.
    """
    report = replace(report, rows=tuple(row for row in report.rows if row.timed))
    if not report.rows:
        raise UsageError(
            "There is nothing to draw: no row has valid times.",
            fix="Measure more iterations, or leave the plot out; the warnings have the reasons.",
        )
    return {"pareto": _pareto, "latency": _latency, "batches": _batches}[kind](report)


def _pareto(report: Report) -> bytes:
    """Images per second against the score; an engine without a score is a vertical line."""
    figure, axes = new_axes(6.8, 4.4)
    rows = [row for row in report.rows if row.batch == 1 and row.stage in _scopes(report)]
    markers = dict(zip(_scopes(report), "os^Dv", strict=False))
    engines = list(dict.fromkeys(row.engine for row in rows))
    colours = dict(zip(engines, COLOURS * len(engines), strict=False))
    for row in rows:
        label = f"{row.engine}, {row.stage}" + ("" if row.verdict.valid else ", INVALID")
        if row.score is None:
            style = "--" if row.stage == "network" else ":"
            axes.axvline(row.fps, color=colours[row.engine], linestyle=style, label=label)
        else:
            axes.plot(
                row.fps, row.score, markers[row.stage], color=colours[row.engine], label=label
            )
    for stage in markers:
        own = [(r.fps, r.score) for r in rows if r.stage == stage and r.score is not None]
        draw_front(axes, own, "black", f"front, {stage}")
    axes.set_xlabel("images per second")
    axes.set_ylabel(
        "score, percent" if any(r.score is not None for r in rows) else "no scores given"
    )
    axes.set_xlim(left=0, right=1.1 * max(row.fps for row in rows))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(_machine(report), fontsize=9)
    return png(figure)


def _scopes(report: Report) -> list[str]:
    """The scopes among the measured stages; without any, the first five stages."""
    wanted = ("network", "network+copies", "end-to-end")
    found = [s for s in wanted if any(row.stage == s for row in report.rows)]
    return found or list(dict.fromkeys(row.stage for row in report.rows))[:5]


def _latency(report: Report) -> bytes:
    rows = [row for row in report.rows if row.stage in _scopes(report) and row.batch == 1]
    figure, panels = new_panels(len(rows))
    for axes, row in zip(panels, rows, strict=True):
        axes.hist(row.samples, bins=min(40, max(8, len(row.samples) // 3)))
        for percent, style in ((50, "-"), (95, "--"), (99, ":")):
            axes.axvline(row.percentile(percent), color="black", linestyle=style, linewidth=0.9)
        axes.set_title(f"{row.engine}, {row.stage}: {row.verdict}", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("ms; lines: p50, p95, p99", fontsize=8)
    return png(figure)


def _batches(report: Report) -> bytes:
    figure, axes = new_axes(6.4, 4)
    swept: dict[str, dict[int, Row]] = {}
    for row in report.rows:
        if row.stage == "network+copies":
            swept.setdefault(row.engine, {})[row.batch] = row
    for engine, rows in swept.items():
        order = sorted(rows)
        axes.plot(order, [rows[size].fps for size in order], "o-", label=engine)
    sizes = sorted({size for rows in swept.values() for size in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch size")
    axes.set_ylabel("images per second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(_machine(report), fontsize=9)
    return png(figure)


def _machine(report: Report) -> str:
    gpus: list[str] = report.environment.get("gpus") or []
    cpu = f"{report.environment['cpu']}, {report.environment['cores']} cores"
    on_gpu = any(row.device.startswith("cuda") for row in report.rows)
    return gpus[0] if gpus and on_gpu else cpu
