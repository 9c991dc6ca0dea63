"""Reports as text tables, for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from eomt_deploy.benchmarking.measure.scenarios import Served
from eomt_deploy.benchmarking.measure.statistics import LEVEL, PERCENTILES, Ratio, percentile
from eomt_deploy.benchmarking.measure.verdict import Verdict
from eomt_deploy.benchmarking.paper.report import Measurement, SuiteReport
from eomt_deploy.benchmarking.paper.suite_file import Suite, SuiteRow
from eomt_deploy.benchmarking.report import Report

NONE = "–"
SHOWN = 3
"""Maximum number of reasons of one kind that are written out."""


@dataclass(frozen=True)
class Sheet:
    """A table: the first ``words`` columns hold text, the others numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        rule = [":--" if i < self.words else "--:" for i in range(len(self.headers))]
        lines = [self.headers, tuple(rule), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


def machine_line(report: SuiteReport) -> str:
    """Description of the machine in one line."""
    machine = report.environment
    gpus = ", ".join(machine.get("gpus", ())) or "no GPU"
    torch = machine.get("versions", {}).get("torch", "?")
    return f"{gpus}; {machine['cpu']}, {machine['cores']} cores; PyTorch {torch}; {machine['date']}"


def sheets(report: SuiteReport) -> list[Sheet]:
    """All tables of a report: sizes of the networks, times of each runtime, scope and batch size,
    then the comparison of runtimes and the server scenario."""
    sizes = report.sizes
    counted = [
        (row, sizes[row.name].params, sizes[row.name].macs)
        for row in report.rows
        if row.name in sizes
    ]
    found = [count_sheet(report.suite, counted)] if counted else []
    found += [sheet(report, list(own)) for _, own in groupby(_ordered(report), lambda m: m.key)]
    if len(report.settings["runtimes"]) > 1 and report.measurements:
        found.append(_runtime_sheet(report))
    if report.served:
        found.append(served_sheet(report.served))
    return found


def _ordered(report: SuiteReport) -> list[Measurement]:
    """Each row once for each runtime, scope and batch size, in the suite's order."""
    order = {row.name: index for index, row in enumerate(report.rows)}
    runtimes: dict[str, int] = {}
    for name in report.settings["runtimes"]:
        runtimes.setdefault(name, len(runtimes))
    once: dict[tuple[object, ...], Measurement] = {}
    for m in report.measurements:  # a base is measured in several groups; the first one is shown
        once.setdefault((m.row, *m.key), m)
    return sorted(
        once.values(),
        key=lambda m: (runtimes.get(m.runtime, 99), m.precision, m.scope, m.batch, order[m.row]),
    )


def sheet(report: SuiteReport, found: list[Measurement]) -> Sheet:
    """Our numbers beside the paper's, for rows of one runtime, precision, scope and batch size."""
    first = found[0]
    headers = (
        "row", "p50 ms", "p95", "FPS", f"ratio ({LEVEL:.0%})", "TFLOP/s",
        "of peak", f"{report.suite.device}: FPS", "ratio", "verdict",
    )  # fmt: skip
    batch = "" if first.batch == 1 else f", batch {first.batch}"
    title = (
        f"{report.suite.name}: {first.runtime} on {first.device}, {first.precision}, "
        f"{first.scope}{batch}"
    )
    several = len({report.row(m.row).size for m in found}) > 1
    if not several:
        title += f", {_side(report.row(first.row).size)} pixels"
    return Sheet(title, headers, tuple(_line(report, m, several) for m in found))


def _line(report: SuiteReport, found: Measurement, several: bool) -> tuple[str, ...]:
    row = report.row(found.row)
    share, fps = report.peak_share(found), row.paper.fps
    return (
        row.label + (f" at {_side(row.size)}" if several else ""),
        f"{found.percentile(50):.2f}",
        f"{found.percentile(95):.2f}",
        _rate(found.fps),
        ratio_words(report.ratio(found)),
        _small(report.tflops(found)),
        NONE if share is None else f"{share:.0%}",
        NONE if fps is None else f"{fps:g}",
        _small(report.paper_ratio(row.name)),
        validity(found.verdict),
    )


def validity(verdict: Verdict) -> str:
    return "VALID" if verdict.valid else "INVALID"


def ratio_words(ratio: Ratio | None) -> str:
    """Ratio and interval, e.g. ``4.31 (4.22–4.40)``; ``=`` marks a ratio without a difference."""
    if ratio is None:
        return NONE
    same = " =" if ratio.finding == "no difference" else ""
    mark = "" if ratio.paired else " unpaired"
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}){same}{mark}"


def _runtime_sheet(report: SuiteReport) -> Sheet:
    """Runtimes side by side: FPS, and the speedup over the first one."""
    rows = []
    for m in _ordered(report):
        words = ratio_words(report.runtime_ratio(m))
        label = report.row(m.row).label
        rows.append((label, m.runtime, m.scope, str(m.batch), _rate(m.fps), words))
    rows.sort(key=lambda line: [r.label for r in report.rows].index(line[0]))
    first = report.settings["runtimes"][0]
    headers = ("row", "runtime", "scope", "batch", "FPS", f"times {first}")
    return Sheet("Runtimes side by side", headers, tuple(rows), words=3)


def served_sheet(served: Sequence[Served]) -> Sheet:
    """Results of the server scenario."""
    headers = (
        "row", "runtime", "rate /s", "offered /s", "answered /s",
        "p50 ms", "p90", "p99", "lost", "verdict",
    )  # fmt: skip
    rows = []
    for one in served:
        times = [
            f"{percentile(one.latencies, p):.1f}" if one.latencies else NONE for p in (50, 90, 99)
        ]
        words = (
            one.row, one.runtime, f"{one.rate:.2f}", f"{one.offered:.2f}", f"{one.throughput:.2f}",
        )  # fmt: skip
        rows.append((*words, *times, f"{one.loss:.1%}", validity(one.verdict)))
    return Sheet(f"Poisson arrivals, queue of {served[0].queue}", headers, tuple(rows), words=2)


def count_sheet(suite: Suite, found: Sequence[tuple[SuiteRow, int, int]]) -> Sheet:
    """Parameters and multiply-adds beside the paper's.

    Args:
        found: each row with its parameters and the MACs of one image.
    """
    headers = ("row", "size", "params M", "paper", "GMACs", "paper", "difference")
    rows = []
    for row, params, macs in found:
        theirs = row.paper.gmacs
        original = next(r for r in suite.rows if r.name == row.name)
        same = (original.size, original.backbone) == (row.size, row.backbone)
        rows.append(
            (
                row.label,
                _side(row.size),
                f"{params / 1e6:.1f}",
                f"{row.paper.params_m:g}" if same and row.paper.params_m else NONE,
                f"{macs / 1e9:.4g}",
                f"{theirs:g}" if same and theirs else NONE,
                f"{macs / 1e9 / theirs - 1:+.1%}" if same and theirs else NONE,
            )
        )
    return Sheet(f"{suite.name}: counted", headers, tuple(rows))


def engine_sheet(report: Report) -> Sheet:
    """Times of every stage of every engine, and the speedup over the first engine."""
    headers = [
        "engine", "on", "stage", "p50 ms", "p90", "p95", "p99", "variation", "FPS",
    ]  # fmt: skip
    several = len({row.engine for row in report.rows}) > 1
    if several:
        headers.append(f"times {report.rows[0].engine}")
    rows = []
    previous = ""
    for row in report.rows:
        stage = row.stage if row.batch == 1 else f"{row.stage}, batch {row.batch}"
        known = row.engine == previous
        line = ["" if known else row.engine, "" if known else f"{row.backend} {row.device}", stage]
        line += [f"{row.percentile(p):.2f}" for p in PERCENTILES]
        line += [f"{row.cv:.1%}" if row.timed else NONE, _rate(row.fps)]
        if several:
            line.append(ratio_words(report.ratio(row)))
        rows.append(tuple(line))
        previous = row.engine
    valid = sum(row.verdict.valid for row in report.rows)
    return Sheet(f"{valid} of {len(report.rows)} VALID", tuple(headers), tuple(rows), words=3)


def remarks(report: SuiteReport) -> list[str]:
    """Notes, reasons for doubt and settings that affect how to read the numbers."""
    lines = list(report.notes)
    lines += [f"skipped {s.row} in {s.runtime}: {s.reason}" for s in report.skipped]
    lines += doubts([(f"{m.row}, {m.runtime}, {m.scope}", m.verdict) for m in report.measurements])
    lines += dict.fromkeys(f"{s.row}, {s.runtime}: {s.doubt}" for s in report.served if s.doubt)
    lines += dict.fromkeys(
        f"{m.row}, {m.runtime}: {m.remark}" for m in report.measurements if m.remark
    )
    if report.settings.get("sampling", "grid_sample") != "grid_sample":
        lines.append("the baseline's deformable attention runs as one fused Triton kernel")
    if any(m.scope == "end-to-end" for m in report.measurements):
        lines.append("end-to-end with random weights: almost no segments are predicted and drawn")
    if changed := report.settings.get("changed"):
        lines.append(f"not the paper's {changed}: its numbers are shown for orientation only")
    peaks = ", ".join(f"{p.precision} {p.tflops:.3g}" for p in report.peaks.values())
    if peaks:
        lines.append(f"measured peak of matrix multiplications, TFLOP/s: {peaks}")
    return lines


def doubts(found: Sequence[tuple[str, Verdict]]) -> list[str]:
    """Summary of verdicts: one line for each kind of reason. The JSON file has all reasons."""
    by_kind: dict[str, dict[str, list[str]]] = {}
    for name, verdict in found:
        for reason in verdict.reasons:
            by_kind.setdefault(reason.kind, {}).setdefault(reason.text, []).append(name)
    lines = []
    for kind, texts in by_kind.items():
        count = len({name for names in texts.values() for name in names})
        shown = [f"{text} ({names[0]})" for text, names in list(texts.items())[:SHOWN]]
        if len(texts) == 1 and count == len(found):
            shown = list(texts)
        more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        lines.append(f"{kind}, {count} of {len(found)}: {'; '.join(shown)}{more}")
    return lines


def markdown(report: SuiteReport) -> str:
    """The complete report as Markdown."""
    parts = [
        f"# {report.suite.name}: {report.suite.summary}",
        f"Machine: {machine_line(report)}",
        f"The paper's numbers: {report.suite.source}, on {report.suite.device}.",
        *(one.markdown() for one in sheets(report)),
    ]
    lines = remarks(report)
    if lines:
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _side(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _rate(value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _small(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"
