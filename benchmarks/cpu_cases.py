"""Helpers of :mod:`cpu_end_to_end`: transformers' processing, timing."""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from rich.console import Console
from rich.table import Table

from eomt_deploy.benchmarking.machine.watch import Watch
from eomt_deploy.benchmarking.measure.clock import Job, Rounds, measure
from eomt_deploy.benchmarking.measure.statistics import (
    clock_problem,
    percentile,
    speedup,
    variation,
)
from eomt_deploy.benchmarking.measure.verdict import Evidence, Verdict, judge
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec

BASE, OURS = "transformers", "eomt-deploy"
IMAGE_SIZES = {"1920x1080": (1080, 1920), "640x480": (480, 640), "3840x2160": (2160, 3840)}
"""transformers truncates a scaled size, whereas the official code and ours round it. For semantic
windows, 640x480 becomes 682x512 or 683x512, which reduces the agreement."""
ALONE = "3840x2160"
"""Size at which only ours is measured, because transformers needs too much memory."""
SHAPES = {"s": (384, 12, 6), "b": (768, 12, 12)}
"""Width, number of blocks and number of heads."""
COMPUTED_IN = {
    BASE: ("fp32", "fp32"),
    "onnxruntime fp32": ("fp32", "fp32"),
    "onnxruntime int8": ("int8", "fp32"),
    "openvino f32": ("fp32", "fp32"),
    "openvino bf16": ("bf16", "bf16"),
    "openvino int8": ("int8", "fp32"),
    "openvino int8 + bf16": ("int8", "bf16"),
}
"""Precision of the linear layers and of all other layers, for each row."""
STREAMED = 200
UNSTABLE_CV = 0.5
"""Times of transformers vary by a third because of memory allocation. The interval of a ratio shows
its uncertainty; this limit only removes unusable rows."""
GOALS = {
    "post: panoptic 1920x1080": (OURS, 30),
    "post: instance 1920x1080": (OURS, 75),
    "post: semantic 1920x1080": (OURS, 30),
    "post: instance 1920x1080, overlapping": (OURS, 200),
    "post: semantic 1920x1080, overlapping": (OURS, 40),
    "network: S 640": ("openvino int8 + bf16", 4.5),
    "network: B 640": ("openvino int8 + bf16", 6),
    "photo: S 1920x1080 JPEG": ("openvino int8 + bf16", 8),
}
"""Main row of each case, and its required speedup over transformers."""

console = Console()


class Theirs:
    """transformers' pre- and post-processing for one of our models."""

    def __init__(self, spec: ModelSpec) -> None:
        self.task = spec.task
        self._stuff = [c.id for c in spec.classes if not c.thing]
        side = spec.image_size[0]
        split = spec.task == "semantic"
        size = {"shortest_edge": side, "longest_edge": None if split else side}
        kind = transformers.EomtImageProcessorPil
        self.processor = kind(do_split_image=split, do_pad=not split, size=size)

    def postprocess(self, outputs: Any, size: tuple[int, int]) -> Any:
        if self.task == "semantic":
            return self.processor.post_process_semantic_segmentation(outputs, [size])[0]
        if self.task == "instance":
            return self.processor.post_process_instance_segmentation(outputs, [size], 0.5)[0]
        return self.processor.post_process_panoptic_segmentation(
            outputs, [size], stuff_classes=self._stuff
        )[0]


def agreement(task: str, mine: Segmentation, his: Any) -> float:
    """Share of pixels on which two results agree, 0 to 1."""
    if task == "semantic":
        return float((mine.class_map == his.numpy()).mean())
    theirs = his["segmentation"].numpy()
    if task == "panoptic":
        return float((mine.segment_map == theirs).mean())
    # transformers draws instances in the order of the queries, so draw ours in that order, too.
    painted = np.full(mine.size, -1)
    left = list(mine.segments)
    for info in his["segments_info"]:
        alike = [s for s in left if s.class_id == info["label_id"]]
        if not alike:
            return 0.0
        segment = min(alike, key=lambda s, score=info["score"]: abs(s.score - score))
        left.remove(segment)
        painted[segment.mask] = info["id"]
    return 0.0 if left else float((painted == theirs).mean())


def kilobytes(name: str) -> int:
    """Value of an entry of this process's status in KiB, e.g. ``VmRSS``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def extra_memory(work: Callable[[], Any]) -> int:
    """Additional memory of a call in bytes, including its result; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kilobytes("VmRSS")
    result = work()
    after = kilobytes("VmHWM")
    del result
    return max(0, after - before) * 1024


def time_jobs(jobs: dict[str, Callable[[], Any]], rounds: int, seed: int) -> dict[str, Any]:
    """Time all jobs; each row has milliseconds, the speedup over the first row, and a verdict."""
    names = list(jobs)
    with Watch("cpu") as watch:
        settings = Rounds(rounds, warmup=1)
        measured = measure({n: Job(w) for n, w in jobs.items()}, settings, watch=watch, seed=seed)
        others = watch.others
    rows = {}
    for name in names:
        samples = measured.samples[name]
        evidence = Evidence(
            variation(samples), len(samples), others=others, clock=clock_problem(samples)
        )
        verdict = judge(evidence, unstable_cv=UNSTABLE_CV)
        ratio = speedup(measured.samples[names[0]], samples)
        rows[name] = {
            "p50_ms": round(percentile(samples, 50), 3),
            "cv": round(variation(samples), 4),
            "times_as_fast": ratio.to_dict(),
            "verdict": verdict.to_dict(),
            "samples_ms": [round(sample, 3) for sample in samples],
        }
    return rows


def add_shares_of_peak(
    rows: dict[str, Any], flops: tuple[int, int], peaks: dict[str, float]
) -> None:
    """Add to each row its share of the processor's peak, and its speedup at the peak.

    Args:
        rows: rows of one case; they are updated.
        flops: FLOP of the linear layers and of all other layers.
        peaks: measured peak in FLOP/s, by precision.
    """
    for name, computed_in in COMPUTED_IN.items():
        seconds = sum(n / peaks[precision] for n, precision in zip(flops, computed_in, strict=True))
        rows[name]["share_of_peak"] = round(1000 * seconds / rows[name]["p50_ms"], 3)
        rows[name]["times_as_fast_at_peak"] = round(rows[BASE]["p50_ms"] / 1000 / seconds, 2)


def judge_goal(row: dict[str, Any], times: float) -> str:
    """ "reached" or "missed" if the complete interval is on one side of the goal."""
    ratio = row["times_as_fast"]
    if not Verdict.from_dict(row["verdict"]).valid or ratio["low"] < times <= ratio["high"]:
        return "no conclusion"
    return "reached" if ratio["low"] >= times else "missed"


def show(case: dict[str, Any]) -> None:
    table = Table(title=f"{case['section']}: {case['case']}", title_justify="left")
    rows = case["rows"]
    peaks = "share_of_peak" in rows[next(iter(rows))]
    for column in ("", "p50 ms", "times as fast", "of peak" if peaks else "extra MB", "verdict"):
        table.add_column(column)
    for name, row in rows.items():
        ratio, verdict = row["times_as_fast"], Verdict.from_dict(row["verdict"])
        fast = f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        extra = case.get("extra_bytes", {}).get(name)
        more = "" if extra is None else f"{extra / 1e6:.0f}"
        if peaks:
            more = f"{row['share_of_peak']:.0%}, there {row['times_as_fast_at_peak']:.2f}"
        shown = fast if verdict.valid else "no conclusion"
        table.add_row(name, f"{row['p50_ms']:.1f}", shown, more, str(verdict))
    console.print(table)
    goal = GOALS.get(f"{case['section']}: {case['case']}")
    if goal:
        row = case["rows"][goal[0]]
        case["goal"] = {"row": goal[0], "times": goal[1], "finding": judge_goal(row, goal[1])}
        console.print(f"goal {goal[1]} times: {case['goal']['finding']}")
    if "agreement" in case:
        console.print(f"equal on {case['agreement']:.5%} of the pixels")


GROUPS = {
    "post": "post-processing (log scale)",
    "network": "network alone",
    "photo": "from the JPEG file to the result",
}
"""Sections that are drawn, and their titles."""
COLOURS = ("#9ecae1", "#4292c6", "#a1d99b", "#41ab5d", "#fdae6b", "#006d2c")


def plot(runs: list[list[dict[str, Any]]]) -> bytes:
    """Three panels of grouped bars: a group for each case, a bar for each backend.

    A bar is the median of the runs; its line goes from the lowest to the highest end of their 99%
    intervals.
    """
    from eomt_deploy.benchmarking.paper.plots import new_row, png

    figure, panels = new_row(len(GROUPS))
    for axes, (section, title) in zip(panels, GROUPS.items(), strict=True):
        cases = ratios(runs, section)
        rows = list(dict.fromkeys(row for found in cases.values() for row in found))
        width = 0.8 / max(len(rows), 1)
        prefix = "" if section == "post" else "EoMT-"
        for place, row in enumerate(rows):
            colour = COLOURS[place % len(COLOURS)] if len(rows) > 1 else "#006d2c"
            spots = [
                (index + (place - (len(rows) - 1) / 2) * width, found[row])
                for index, found in enumerate(cases.values())
                if row in found
            ]
            axes.bar(
                [x for x, _ in spots], [value for _, (value, _, _) in spots],
                0.92 * width, color=colour, label=row.replace(" f32", " fp32"),
            )  # fmt: skip
            for x, (_, low, high) in spots:
                axes.vlines(x, low, high, color="black", linewidth=1.1)
        axes.axhline(1, color="0.4", linewidth=0.8)  # transformers
        axes.set_xticks(range(len(cases)), [prefix + name.replace(" ", "\n", 1) for name in cases])
        axes.tick_params(labelsize=6 if len(cases) > 2 else 8)
        axes.set_title(title, fontsize=10)
        if section == "post":
            axes.set_yscale("log")
            axes.set_ylim(bottom=1)
        elif rows:
            axes.legend(fontsize=7, loc="upper left", ncols=2)
            top = max(high for found in cases.values() for _, _, high in found.values())
            axes.set_ylim(0, 1.3 * top)  # room for the legend
    panels[0].set_ylabel("times as fast as transformers (lines: 99% intervals)", fontsize=8)
    return png(figure)


def ratios(
    runs: list[list[dict[str, Any]]], section: str
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Median and ends of the intervals of each row, by case; without the base itself."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in (case for run in runs for case in run if case["section"] == section):
        for row, numbers in case["rows"].items():
            if row != BASE and BASE in case["rows"]:
                found.setdefault(case["case"], {}).setdefault(row, []).append(
                    numbers["times_as_fast"]
                )
    return {
        case: {
            row: (
                statistics.median(r["value"] for r in ratios),
                min(r["low"] for r in ratios),
                max(r["high"] for r in ratios),
            )
            for row, ratios in rows.items()
        }
        for case, rows in found.items()
    }
