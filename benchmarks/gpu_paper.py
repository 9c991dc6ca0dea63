"""Measure the paper's speed tables on this GPU, in less than ten minutes.

    python benchmarks/gpu_paper.py          # writes benchmarks/results/<gpu>/gpu_paper.json
    eomt-deploy bench --report benchmarks/results/<gpu>/gpu_paper.json --report-dir report/

It needs this repository, PyTorch 2.11 or later, and NumPy. Nothing is downloaded; the weights are
random. The sections are sorted by importance: if the time is over, the remaining ones are skipped
with a message. The file is written after each group of rows, so that an interruption loses little.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # eomt_deploy may not be installed


@dataclass(frozen=True)
class Section:
    """One run of a suite: rows that are compared with each other.

    Attributes:
        suite: name of a suite file in this folder.
        runtimes: how the networks are run, as in `eomt-deploy bench --runtime`.
        precision: precision of the networks on a GPU.
        seconds: time limit.
        rows: names of the rows; empty means all.
        sampling: implementation of the deformable attention of the baseline.
    """

    suite: str
    runtimes: tuple[str, ...]
    precision: str
    seconds: float
    rows: tuple[str, ...] = ()
    sampling: str = "grid_sample"


COMPILED = ("torch-compile",)
SECTIONS = (
    # Without a compiler: eager networks are limited by kernel launches, CUDA graphs are not.
    Section("table1", ("torch-eager", "torch-graph"), "fp16", 30),
    Section("table3", ("torch-graph",), "fp16", 30, ("small 0", "small 5", "base 0", "base 5")),
    # The fastest one that does not need TensorRT.
    Section("table1", ("aotinductor-graph",), "fp16", 60, ("step 5",)),
    # The paper's protocol, as far as it is published: torch.compile in its default mode.
    Section("table1", COMPILED, "fp16", 220),
    Section("table1", (*COMPILED, "torch-max-autotune"), "fp16", 90, ("step 5",)),
    Section("table3", COMPILED, "fp16", 100, ("small 0", "small 5", "base 0", "base 5")),
    Section("table3", COMPILED, "fp16", 60, ("giant 5",)),
    Section("table4", COMPILED, "fp16", 50),
    Section("dinov3", COMPILED, "fp16", 50, ("large", "small")),
    Section("table1", COMPILED, "bf16", 40, ("step 5",)),
    # The baseline with a fused kernel for its deformable attention, as in typical installations.
    Section("table1", ("torch-eager", "torch-graph"), "fp16", 30, ("step 0", "step 5"), "triton"),
    # Cost of rotary position embeddings.
    Section("table2", COMPILED, "fp16", 40, ("eva02 0", "eva02 4", "eva02 5")),
)
GROUPS = {
    "graph": ("torch-eager", "torch-graph"),
    "package": ("aotinductor-graph",),
    "compiled": ("torch-compile", "torch-max-autotune"),
}
"""Runtimes of each group of sections."""
GRACE = 1.2
"""Minutes after the time for starting sections at which the program is stopped in any case."""
MIN_SECONDS = 10
"""Minimum remaining time for starting a section."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the paper's speed tables on this GPU.")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/<gpu>/gpu_paper.json).",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="Minutes after which no section is started (default: 8.5).",
    )
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="Device (default: cuda)."
    )
    parser.add_argument(
        "--backbone", help="Backbone of all rows, e.g. tiny for a quick test of this program."
    )
    parser.add_argument(
        "--size", type=int, help="Input size in pixels, e.g. 128 for a quick test of this program."
    )
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, help="Groups of sections to run (default: all)."
    )
    options = parser.parse_args()

    from eomt_deploy import devices
    from eomt_deploy.benchmarking.machine import roofline
    from eomt_deploy.benchmarking.machine.environment import environment
    from eomt_deploy.benchmarking.machine.watch import gpu_load

    names = devices.cuda_device_names()
    if options.device == "cuda" and not names:
        sys.exit("error: the NVIDIA driver reports no GPU; try --device cpu")
    machine = names[0] if options.device == "cuda" else devices.cpu_name()
    folder = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-").lower()
    target = options.output or HERE / "results" / folder / "gpu_paper.json"
    target.parent.mkdir(parents=True, exist_ok=True)

    deadline = time.perf_counter() + 60 * options.minutes
    # The file is complete after each group, so a hard stop loses only the current group.
    watchdog = threading.Timer(60 * (options.minutes + GRACE), stop, (target,))
    watchdog.daemon = True
    watchdog.start()
    busy = gpu_load() if options.device == "cuda" else None  # before our own load
    peaks, missing = roofline.probe(options.device)
    facts = {
        "schema": 1,
        "kind": "facts",
        "environment": environment(),
        "peaks": {name: peak.to_dict() for name, peak in peaks.items()},
        "missing": missing,
    }
    done: list[dict[str, Any]] = [facts]
    failed = []
    for section in chosen_sections(options.groups):
        words = f"{section.suite}, {' and '.join(section.runtimes)}, {section.precision}"
        seconds = min(section.seconds, deadline - time.perf_counter())
        if seconds < MIN_SECONDS:
            print(f"skipped, because the time is over: {words}", file=sys.stderr, flush=True)
            facts.setdefault("left_out", []).append(words)
        else:
            print(f"{words}: {seconds:.0f} s", file=sys.stderr, flush=True)
            error = measure(configure(section, options, seconds, busy), done, target)
            if error is not None:
                failed.append(f"{words}: {type(error).__name__}: {error}")
                trace = "".join(traceback.format_exception(error))
                facts.setdefault("failed", []).append(trace)
        write(target, done)
    print(target)
    sys.exit("failed:\n" + "\n".join(failed) if failed else 0)


def chosen_sections(groups: list[str] | None) -> list[Section]:
    """The sections of the given groups; None means all."""
    runtimes = {name for group in groups or GROUPS for name in GROUPS[group]}
    return [section for section in SECTIONS if runtimes.issuperset(section.runtimes)]


def measure(config: Any, done: list[dict[str, Any]], target: Path) -> Exception | None:
    """Measure one section and add it to ``done``; return its error, so that others still run."""
    from eomt_deploy.benchmarking.paper.suite import run_suite

    place = len(done)

    def save(report: Any) -> None:
        done[place:] = [report.to_dict()]
        write(target, done)

    try:
        log = lambda text: print(f"  {text}", file=sys.stderr)  # noqa: E731
        save(run_suite(config, log=log, save=save))
    except Exception as error:
        return error
    return None


def stop(target: Path) -> None:
    """Stop the program even while a compiler is running, which nothing else can interrupt."""
    print(f"time limit reached; the results so far are in {target}", file=sys.stderr, flush=True)
    os._exit(1)


def configure(
    section: Section, options: argparse.Namespace, seconds: float, busy: float | None
) -> Any:
    """Make the suite configuration of a section."""
    from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig
    from eomt_deploy.benchmarking.paper.suite_file import find_suite

    return SuiteConfig(
        suite=find_suite(section.suite),
        rows=section.rows,
        size=(options.size, options.size) if options.size else None,
        backbone=options.backbone,
        runtimes=section.runtimes,
        device=options.device,
        precision=section.precision if options.device == "cuda" else "fp32",
        sampling=section.sampling,
        budget=seconds,
        busy=busy,
    )


def write(target: Path, sections: list[dict[str, Any]]) -> None:
    """Write all sections so far atomically."""
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps({"schema": 1, "kind": "sections", "sections": sections}) + "\n")
    part.replace(target)


if __name__ == "__main__":
    main()
