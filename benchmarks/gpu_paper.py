"""The paper's speed tables on this GPU, in one command and under ten minutes.

    python benchmarks/gpu_paper.py          # writes benchmarks/results/<gpu>/gpu_paper.json
    eomt-deploy bench --report benchmarks/results/<gpu>/gpu_paper.json --report-dir report/

Needs this repository, PyTorch 2.11 or later and NumPy; nothing is downloaded, weights are random.
The sections stand in the order of their importance: what the time does not suffice for is skipped,
with words. The file is written after each group of rows, so that a limit costs little.
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
sys.path.insert(0, str(HERE.parent))  # a bare machine has the repository, and nothing installed


@dataclass(frozen=True)
class Section:
    """One run of a suite: rows that are compared with each other.

    Attributes:
        suite: a file of this folder.
        seconds: that it may take.
        rows: names; none takes all.
    """

    suite: str
    runtimes: tuple[str, ...]
    precision: str
    seconds: float
    rows: tuple[str, ...] = ()
    sampling: str = "grid_sample"


COMPILED = ("torch-compile",)
SECTIONS = (
    # The paper's own protocol, as far as it is told: torch.compile in its default mode.
    Section("table1", COMPILED, "fp16", 220),
    # The same networks without a compiler, and launched at once: how much of the ratio is launches.
    Section("table1", ("torch-eager", "torch-graph"), "fp16", 40, ("step 0", "step 4", "step 5")),
    # The best that needs no TensorRT.
    Section(
        "table1", (*COMPILED, "aotinductor-graph", "torch-max-autotune"), "fp16", 90, ("step 5",)
    ),
    Section("table3", COMPILED, "fp16", 100, ("small 0", "small 5", "base 0", "base 5")),
    Section("table3", COMPILED, "fp16", 60, ("giant 5",)),
    Section("table4", COMPILED, "fp16", 50),
    Section("dinov3", COMPILED, "fp16", 50, ("large", "small")),
    Section("table1", COMPILED, "bf16", 40, ("step 5",)),
    # A baseline with a fused kernel for its deformable attention, as its users have.
    Section("table1", ("torch-eager", "torch-graph"), "fp16", 30, ("step 0", "step 5"), "triton"),
    # What rotary positions cost.
    Section("table2", COMPILED, "fp16", 40, ("eva02 0", "eva02 4", "eva02 5")),
)
GRACE = 1.2
"""Minutes after the last beginning at which the program ends, whatever it does."""
LEAST_SECONDS = 10
"""A section is not begun with less."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's speed tables on this GPU.")
    parser.add_argument("--output", type=Path, help="JSON file; default: results/<gpu>/")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin nothing later")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backbone", help="for all rows, to try this program out: tiny")
    parser.add_argument("--size", type=int, help="pixels, to try this program out")
    options = parser.parse_args()

    from eomt_deploy import devices
    from eomt_deploy.benchmarking.machine import roofline
    from eomt_deploy.benchmarking.machine.environment import environment
    from eomt_deploy.benchmarking.machine.watch import gpu_load

    names = devices.cuda_device_names()
    if options.device == "cuda" and not names:
        sys.exit("error: the NVIDIA driver reports no GPU; there is nothing to measure here")
    machine = names[0] if options.device == "cuda" else devices.cpu_name()
    folder = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-").lower()
    target = options.output or HERE / "results" / folder / "gpu_paper.json"
    target.parent.mkdir(parents=True, exist_ok=True)

    deadline = time.perf_counter() + 60 * options.minutes
    # The file is whole after each group, so that stopping hard costs only what is under way.
    watchdog = threading.Timer(60 * (options.minutes + GRACE), stop, (target,))
    watchdog.daemon = True
    watchdog.start()
    busy = gpu_load() if options.device == "cuda" else None  # before the load that we make
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
    for section in SECTIONS:
        words = f"{section.suite}, {' and '.join(section.runtimes)}, {section.precision}"
        seconds = min(section.seconds, deadline - time.perf_counter())
        if seconds < LEAST_SECONDS:
            print(f"no time is left for {words}", file=sys.stderr, flush=True)
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


def measure(config: Any, done: list[dict[str, Any]], target: Path) -> Exception | None:
    """Measure one section and add it to ``done``; one that breaks must not cost the others."""
    from eomt_deploy.benchmarking.paper.suite import run_suite

    place = len(done)

    def save(report: Any) -> None:
        done[place:] = [report.to_dict()]
        write(target, done)

    try:
        tell = lambda text: print(f"  {text}", file=sys.stderr)  # noqa: E731
        save(run_suite(config, tell=tell, save=save))
    except Exception as error:
        return error
    return None


def stop(target: Path) -> None:
    """End the program though a compiler is at work, which nothing else interrupts."""
    print(f"out of time; what was measured is in {target}", file=sys.stderr, flush=True)
    os._exit(1)


def configure(
    section: Section, options: argparse.Namespace, seconds: float, busy: float | None
) -> Any:
    """The run of a suite that a section asks for."""
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
    """All sections so far, whole or not at all."""
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps({"schema": 1, "kind": "sections", "sections": sections}) + "\n")
    part.replace(target)


if __name__ == "__main__":
    main()
