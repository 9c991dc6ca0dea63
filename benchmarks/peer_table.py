"""The numbers of benchmarks/peers.py, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eomt_deploy.benchmarking.measure.statistics import (
    clock_problem,
    percentile,
    speedup,
    variation,
)
from eomt_deploy.benchmarking.measure.verdict import Evidence, Verdict, judge

UNSTABLE_CV = 0.5
"""Times of PyTorch rows vary by a third because of memory allocation. The interval of a ratio shows
its uncertainty; this limit only removes unusable rows."""
COLUMNS = ("row", "ms", "times as fast", "peak MB", "as own PyTorch", "as transformers", "verdict")


def summarize(base: Sequence[float], samples: Sequence[float], others: float | None) -> Any:
    """Median, speedup over ``base`` and verdict of a row.

    Args:
        base, samples: milliseconds of the same rounds.
        others: share of the machine that other programs used, 0 to 1.
    """
    clock = clock_problem(samples) or clock_problem(base)
    evidence = Evidence(variation(samples), len(samples), others=others, clock=clock)
    facts: dict[str, Any] = {
        "samples_ms": [round(sample, 2) for sample in samples],
        "verdict": judge(evidence, unstable_cv=UNSTABLE_CV).to_dict(),
    }
    if clock is None:
        facts["p50_ms"] = round(percentile(samples, 50), 2)
        facts["times_as_fast"] = speedup(base, samples).to_dict()
    return facts


def cells(title: str, row: Mapping[str, Any]) -> list[str]:
    """The texts of a row, in the order of :data:`COLUMNS`."""
    if "error" in row:
        return [title, "", "", "", "", "", f"does not run: {shorten(row['error'])}"]
    verdict = Verdict.from_dict(row["verdict"])
    ratio = row.get("times_as_fast")
    fast = "no conclusion"
    if verdict.valid and ratio:
        fast = f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    shares = [row.get(name) for name in ("equal_to_own", "equal_to_transformers")]
    return [
        title, f"{row['p50_ms']:.0f}" if "p50_ms" in row else "", fast,
        f"{row['peak_bytes'] / 1e6:.0f}", *("" if s is None else f"{s:.1%}" for s in shares),
        str(verdict),
    ]  # fmt: skip


def shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def show(task: str, case: Mapping[str, Any]) -> None:
    """Print the table of one task."""
    table = Table(title=f"{task}: 1920x1080 JPEG to masks", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for title, row in case["rows"].items():
        table.add_row(*cells(title, row))
    Console(width=160).print(table)
    if case["others"] is not None:
        print(f"other programs used {case['others']:.0%} of the machine")


def versions(data: Mapping[str, Any]) -> dict[str, str]:
    """Versions of all packages, by the family that used them."""
    found: dict[str, dict[str, str]] = {}
    for case in data["tasks"].values():
        for title, row in case["rows"].items():
            found.setdefault(title.partition(",")[0], {}).update(row.get("versions", {}))
    return {
        name: ", ".join(f"{package} {number}" for package, number in packages.items())
        for name, packages in found.items()
    }


def page(data: Mapping[str, Any], source: Path) -> str:
    """docs/peers.md for one result file.

    Args:
        data: content of the result file.
        source: its path from the root of the repository.
    """
    machine = data["environment"]
    flags = ", ".join(machine["cpu_flags"]) or "none of the flags that we look for"
    lines = [
        INTRODUCTION.format(
            cpu=machine["cpu"], cores=machine["cores"], flags=flags, date=machine["date"][:10],
            source=f"../{source.as_posix()}",
        )
    ]  # fmt: skip
    for task, case in data["tasks"].items():
        lines += [f"## {task.capitalize()}", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for title, row in case["rows"].items():
            texts = [text.replace("|", "\\|") for text in cells(title, row)]
            lines.append("| " + " | ".join(texts) + " |")
        if case["others"] is not None:
            lines += ["", f"Other programs used {case['others']:.0%} of the machine."]
        lines.append("")
    lines += ["## Versions", ""]
    lines += [f"- {name}: {text}" for name, text in versions(data).items() if text]
    lines += ["", NOTES]
    return "\n".join(lines)


INTRODUCTION = """\
# Peers on the same work

`benchmarks/peers.py` runs EoMT-S with eomt-deploy and with four other projects: transformers, \
LibreYOLO, LightlyTrain and Intel Geti (`getitune`). All rows have the same weights and predict \
the same image, a JPEG of 1920x1080, from the file to the masks at its full size. Machine: {cpu}, \
{cores} cores ({flags}), {date}. [All samples]({source}).

- **ms**: median time of one image.
- **times as fast**: compared with transformers in PyTorch, eager FP32, in the same rounds, with \
the 99% interval. A row that is not VALID gives no conclusion.
- **peak MB**: peak memory of a fresh process that loads the model and predicts one image.
- **as own PyTorch**: share of the pixels whose class is the same as in the project's own PyTorch \
model. The reference of our files is transformers, which has the same weights.
- **as transformers**: the same, compared with transformers.

Every row is a process of its own, with two threads on two cores. The rows take turns, one image \
each, in random order, so that other load affects all rows equally.
"""

NOTES = """\
## What differs

- **Weights**: random, so that nothing has to be downloaded. The heads are fitted such that 20 \
queries divide the image among them and all others are "no object", as after training, for each of \
the inputs below (`benchmarks/peers/weights.py`). This says nothing about accuracy on real images. \
Masked attention is off in all rows.
- **Semantic windows**: eomt-deploy, transformers, LibreYOLO in PyTorch and LightlyTrain cut the \
scaled image into two overlapping windows. LibreYOLO's exported files take one window: the image \
is stretched to a square. This is half the work of the network, and another result.
- **Input of panoptic and instance models**: eomt-deploy, transformers and LibreYOLO scale the \
image to 640 pixels and pad it with black, as the official code. LightlyTrain pads it with the \
mean colour; Geti stretches it. So their labels differ from those of transformers although the \
networks are equal.
- **Overlapping instances**: transformers returns one map, the others return one mask per \
instance. For the shares of equal pixels, all are drawn in the same order.
- **LibreYOLO** exports semantic models only; the tables show its own message for the others.
- **LightlyTrain** has no function that runs its exported file. Our row prepares the image with \
its class, and enlarges the masks of the file with the nearest neighbour, as in its notebooks. \
LightlyTrain names DINOv2 with patches of 14 pixels; it is constructed with patches of 16, so that \
it can have the same weights. It is under the AGPL and runs in its own process.
- **Geti**: its INT8 file comes from its own quantisation, calibrated with the same three images \
as our INT8 file.
- **Arithmetic**: OpenVINO computes Geti's FP32 and FP16 files in BF16 on processors with \
instructions for it. LibreYOLO requests FP32. Ours computes in what the row names; our BF16 row \
needs such a processor. INT8 is faster than FP32 on processors with instructions for it (VNNI or \
AMX), and not on AVX2 alone: see [On the CPU, end to end](benchmarking.md#on-the-cpu-end-to-end).
- **torchvision**: the package index has it only for PyTorch with CUDA, and its import fails \
beside PyTorch for CPUs (`operator torchvision::nms does not exist`). `benchmarks/peers/worker.py` \
declares the operators before the import; no row calls them.

## Measure it yourself

```bash
python benchmarks/peers.py --json peers.json     # makes the environments in build/peers first
```

`benchmarks/peers/` has the pinned requirements of each environment. A row that does not run has \
its error in the table; what it printed is in `build/peers/work/logs`.
"""
