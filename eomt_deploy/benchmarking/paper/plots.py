"""Plots of suite reports, as PNG. matplotlib is imported on first use."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eomt_deploy.benchmarking.paper.report import Measurement, SuiteReport
from eomt_deploy.cache import import_matplotlib
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.files import GENERATOR

OURS, PAPER, GREY = "tab:blue", "tab:orange", "0.6"
COLOURS = ("tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
DPI = 150


def check_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    try:
        import_matplotlib()
    except ImportError as error:
        raise MissingDependencyError(
            "Plots need matplotlib, which is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error


def waterfall(report: SuiteReport) -> bytes:
    """FPS from the base to the last row, step by step, with our ratio and the paper's.

    Raises:
        UsageError: nothing was measured.
    """
    found = _main(report)
    figure, axes = new_axes(max(5.0, 1.25 * len(found) + 1.5), 4.2)
    previous = 0.0
    for index, m in enumerate(found):
        gain = m.fps - previous
        colour = OURS if index == 0 else "tab:green" if gain >= 0 else "tab:red"
        axes.bar(index, abs(gain), bottom=min(previous, m.fps), color=colour, width=0.62)
        if index:
            axes.plot([index - 0.69, index + 0.31], [previous] * 2, color=GREY, linewidth=0.8)
        ratio, paper = report.ratio(m), report.paper_ratio(m.row)
        words = f"{m.fps:.3g} FPS"
        words += f"\n{ratio.value:.2f}×" if ratio else ""
        words += f" (paper {paper:.2f}×)" if paper and ratio else ""
        axes.annotate(
            words, (index, max(previous, m.fps)), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=7,
        )  # fmt: skip
        previous = m.fps
    axes.set_xticks(range(len(found)), [_wrap(report.row(m.row).label) for m in found], fontsize=7)
    axes.set_ylabel("images per second")
    axes.set_ylim(0, 1.25 * max(m.fps for m in found))
    changed = report.settings.get("changed")
    title = f"{report.suite.name}: {_words(found[0])}\n{_machine(report)}"
    axes.set_title(title + (f"; not the paper's {changed}" if changed else ""), fontsize=9)
    return png(figure)


def pareto(reports: Sequence[SuiteReport]) -> bytes:
    """Images per second against the score: the paper's points and ours.

    Our networks have random weights, so each gets the score that the paper reports for its row.

    Raises:
        UsageError: no row with a score was measured.
    """
    figure, axes = new_axes(6.8, 4.6)
    drawn: set[str] = set()
    quoted: set[tuple[float, float, str]] = set()
    for report in reports:
        for row in report.suite.rows:
            if row.paper.fps is not None and row.paper.score is not None:
                quoted.add((row.paper.fps, row.paper.score, row.label))
    for fps, score, label in sorted(quoted):
        axes.plot(fps, score, "s", color=PAPER, markersize=5, zorder=2)
        axes.annotate(
            label, (fps, score), xytext=(4, -8), textcoords="offset points", fontsize=5, color=GREY
        )
    names = {f"{m.runtime} {m.precision}" for r in reports for m in r.measurements}
    colours = dict(zip(sorted(names), COLOURS * len(names), strict=False))
    for report in reports:
        for m in _scored(report):
            row = report.row(m.row)
            name = f"{m.runtime} {m.precision}"
            axes.plot(
                m.fps, row.paper.score, "o" if m.verdict.valid else "x", color=colours[name],
                label=f"ours, {name}" if name not in drawn else None, markersize=6, zorder=3,
            )  # fmt: skip
            drawn.add(name)
    if not drawn:
        raise UsageError(
            "There is nothing to draw: no row with a score was measured.",
            fix="Measure rows for which the paper reports a score, at their own size and backbone.",
        )
    draw_front(axes, [(fps, score) for fps, score, _ in quoted], PAPER, "front of the paper")
    ours = [
        (m.fps, report.row(m.row).paper.score or 0.0)
        for report in reports
        for m in _scored(report)
        if m.verdict.valid
    ]
    draw_front(axes, ours, "black", "our front")
    metrics = sorted({r.paper.metric for report in reports for r in report.suite.rows})
    axes.plot([], [], "s", color=PAPER, label=f"paper, {reports[0].suite.device}")
    axes.plot([], [], "x", color=GREY, label="ours, INVALID")
    axes.set_xscale("log")
    axes.set_xlabel("images per second (two machines: compare ratios, not points)")
    axes.set_ylabel(f"score reported in the paper, {' / '.join(metrics)}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(_machine(reports[0]), fontsize=9)
    return png(figure)


def latency(report: SuiteReport) -> bytes:
    """Histogram of the latencies, one panel for each row.

    Raises:
        UsageError: nothing was measured.
    """
    found = _main(report)
    figure, panels = new_panels(len(found))
    for axes, m in zip(panels, found, strict=True):
        axes.hist(m.samples, bins=min(40, max(8, len(m.samples) // 3)), color=OURS)
        for percent, style in ((50, "-"), (95, "--"), (99, ":")):
            value = m.percentile(percent)
            axes.axvline(value, color="black", linestyle=style, linewidth=0.9)
            axes.annotate(
                f"p{percent}", (value, 1), xycoords=("data", "axes fraction"), fontsize=6,
                xytext=(2, -8), textcoords="offset points",
            )  # fmt: skip
        axes.set_title(f"{report.row(m.row).label}: {m.verdict}", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel(f"ms, {_words(found[0])}", fontsize=8)
    return png(figure)


def batches(report: SuiteReport) -> bytes:
    """Throughput and latency against the batch size.

    Raises:
        UsageError: only one batch size was measured.
    """
    scope = report.settings["scopes"][0]
    found = [m for m in report.measurements if m.scope == scope]
    sizes = sorted({m.batch for m in found})
    if len(sizes) < 2:
        raise UsageError("Only one batch size was measured.", fix="Use --scenario offline.")
    figure, (left, right) = _pair()
    lines = list(dict.fromkeys((m.row, m.runtime) for m in found))
    for colour, (row, runtime) in zip(COLOURS * len(lines), lines, strict=False):
        own = {m.batch: m for m in found if (m.row, m.runtime) == (row, runtime)}
        order = sorted(own)
        label = f"{report.row(row).label}, {runtime}"
        left.plot(order, [own[b].fps for b in order], "o-", color=colour, label=label)
        right.plot(order, [own[b].percentile(50) for b in order], "o-", color=colour)
    for axes, name in ((left, "images per second"), (right, "ms per call (p50)")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("batch size")
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize=6)
    figure.suptitle(f"{report.suite.name}, {scope}: {_machine(report)}", fontsize=9)
    return png(figure)


PLOTS: dict[str, Callable[[SuiteReport], bytes]] = {
    "waterfall": waterfall,
    "latency": latency,
    "batches": batches,
}
"""Plots of one report, by kind; ``pareto`` takes several reports."""
NAMES = (*PLOTS, "pareto")


def check_png(plots: Mapping[str, Path]) -> None:
    """Check that the files of the plots (by kind) are PNG files.

    Raises:
        UsageError: one is not.
    """
    for kind, path in plots.items():
        if path.suffix.lower() != ".png":
            raise UsageError(
                f"Plots are written as .png, got --plot-{kind} {path}.",
                fix=f"Use --plot-{kind} {path.with_suffix('.png')}.",
            )


def draw(kind: str, reports: Sequence[SuiteReport]) -> bytes:
    """A plot of :data:`NAMES`, of the first report that has it.

    Raises:
        UsageError: there is nothing to draw.
    """
    reports = _timed(reports)
    if kind == "pareto":
        return pareto(reports)
    fitting = [report for report in reports if kind in drawable([report])]
    return PLOTS[kind](fitting[0] if fitting else reports[0])


def drawable(reports: Sequence[SuiteReport]) -> list[str]:
    """Names of the plots that these reports have data for."""
    reports = _timed(reports)
    measured = [m for report in reports for m in report.measurements]
    found = ["waterfall", "latency"] if measured else []
    if any(len({m.batch for m in report.measurements}) > 1 for report in reports):
        found.append("batches")
    return [*found, "pareto"] if any(map(_scored, reports)) else found


def _timed(reports: Sequence[SuiteReport]) -> list[SuiteReport]:
    """The reports without rows that have invalid times, which cannot be drawn."""
    return [
        replace(report, measurements=[m for m in report.measurements if m.timed])
        for report in reports
    ]


def _scored(report: SuiteReport) -> list[Measurement]:
    """Measurements with a score in the paper; with another size or backbone it does not apply."""
    if report.settings.get("changed"):
        return []
    return [
        m
        for m in report.measurements
        if m.scope == "network" and m.batch == 1 and report.row(m.row).paper.score is not None
    ]


def _main(report: SuiteReport) -> list[Measurement]:
    """Each row once, all in the same runtime, scope and batch size.

    The one with the most VALID rows is drawn; of several, the one that was measured first.
    """
    if not report.measurements:
        raise UsageError(
            "There is nothing to draw: no row was measured.",
            fix="Measure more rounds; the reasons are in the notes of the report.",
        )
    valid = Counter(m.key for m in report.measurements if m.verdict.valid)
    drawn = max((m.key for m in report.measurements), key=lambda key: valid[key])
    once: dict[str, Measurement] = {}
    for m in report.measurements:
        if m.key == drawn:
            once.setdefault(m.row, m)
    return [once[row.name] for row in report.rows if row.name in once]


def _words(m: Measurement) -> str:
    batch = "" if m.batch == 1 else f", batch {m.batch}"
    return f"{m.runtime} on {m.device}, {m.precision}, {m.scope}{batch}"


def _machine(report: SuiteReport) -> str:
    gpus: list[str] = report.environment.get("gpus") or []
    on_gpu = report.settings.get("device") == "cuda" and gpus
    return (
        gpus[0] if on_gpu else f"{report.environment['cpu']}, {report.environment['cores']} cores"
    )


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 16))


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of this size in inches, and its axes."""
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def new_panels(count: int) -> tuple[Any, list[Any]]:
    """A figure, and ``count`` axes one below the other."""
    figure = _figure(6.4, 1.2 + 1.15 * count)
    # One time axis, so that the panels can be compared.
    return figure, list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])


def new_row(count: int) -> tuple[Any, list[Any]]:
    """A figure, and ``count`` axes side by side."""
    figure = _figure(4.4 * count, 4.4)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points (speed, score): no other point is better in both.

    Returns:
        the points of the front, the slowest first.
    """
    found: list[tuple[float, float]] = []
    for speed, score in sorted(points, reverse=True):
        if not found or score > found[-1][1]:
            found.append((speed, score))
    return found[::-1]


def draw_front(axes: Any, points: Iterable[tuple[float, float]], colour: str, label: str) -> None:
    """Draw the front of these points as a line, if it has at least two."""
    line = front(points)
    if len(line) > 1:
        axes.plot(
            *zip(*line, strict=True), "-", color=colour, linewidth=1, alpha=0.6, label=label,
            zorder=1,
        )  # fmt: skip


def _pair() -> tuple[Any, Any]:
    figure = _figure(8.6, 3.9)
    return figure, figure.subplots(1, 2)


def _figure(width: float, height: float) -> Any:
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a window, whatever the user's settings are
    return figure


def png(figure: Any) -> bytes:
    """The finished plot, marked as ours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": GENERATOR})
    return buffer.getvalue()
