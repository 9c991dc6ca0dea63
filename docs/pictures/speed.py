"""The bar chart of the README, from the committed measurement.

    python docs/pictures/speed.py

Reads `benchmarks/results/amd-epyc-2-cores/cpu_end_to_end.json`, which
`python benchmarks/cpu_end_to_end.py --runs 3` wrote, and draws `docs/pictures/speed.png`. A bar is
the median of the runs, the line on it goes from the lowest to the highest end of their 99%
intervals.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results" / "amd-epyc-2-cores" / "cpu_end_to_end.json"
CASES = {
    "photo S 1920x1080 JPEG": "EoMT-S, 640×640",
    "photo B 1920x1080 JPEG": "EoMT-B, 640×640",
}
ROWS = {
    "transformers": ("transformers, PyTorch FP32", "#8a8f98"),
    "onnxruntime fp32": ("ONNX Runtime FP32", "#9ecae1"),
    "onnxruntime int8": ("ONNX Runtime INT8", "#4292c6"),
    "openvino f32": ("OpenVINO FP32", "#a1d99b"),
    "openvino bf16": ("OpenVINO BF16", "#41ab5d"),
    "openvino int8 + bf16": ("OpenVINO INT8 + BF16", "#006d2c"),
}


def rows_of(runs: list[list[dict[str, Any]]], case: str) -> list[dict[str, dict[str, Any]]]:
    """The rows of one case, from every run."""
    return [c["rows"] for run in runs for c in run if f"{c['section']} {c['case']}" == case]


def summary(found: list[dict[str, dict[str, Any]]], row: str) -> tuple[float, float, float, float]:
    """Times as fast (median, lowest and highest interval end) and milliseconds (median)."""
    for rows in found:
        assert rows[row]["verdict"]["valid"], row
    ratios = [rows[row]["times_as_fast"] for rows in found]
    return (
        statistics.median(r["value"] for r in ratios),
        min(r["low"] for r in ratios),
        max(r["high"] for r in ratios),
        statistics.median(rows[row]["p50_ms"] for rows in found),
    )


def main() -> None:
    """Draw the chart and print its numbers."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.6), sharey=True, layout="constrained")
    for axis, (case, title) in zip(axes, CASES.items(), strict=True):
        for place, (row, (label, colour)) in enumerate(ROWS.items()):
            value, low, high, ms = summary(rows_of(runs, case), row)
            axis.barh(place, value, color=colour, height=0.72)
            if row != "transformers":
                axis.hlines(place, low, high, color="#222222", linewidth=1.6)
            axis.text(high + 0.15, place, f"{value:.1f}×  ({ms:,.0f} ms)", va="center", fontsize=10)
            print(f"{title}: {label}: {value:.2f} ({low:.2f} to {high:.2f}), {ms:.0f} ms")
        axis.set_title(title, fontsize=12)
        axis.set_xlim(0, 14)
        axis.set_xlabel("times as fast as transformers")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(ROWS)), [label for label, _ in ROWS.values()])
    axes[0].invert_yaxis()
    figure.suptitle(
        "From a 1920×1080 JPEG to a panoptic result, on two AMD EPYC cores", fontsize=13
    )
    figure.savefig(HERE / "speed.png", dpi=100)


if __name__ == "__main__":
    main()
