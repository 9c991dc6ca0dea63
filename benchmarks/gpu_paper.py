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
import re
import sys
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
    Section("table1", COMPILED, "fp16", 150),
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
)
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
    from eomt_deploy.benchmarking import roofline
    from eomt_deploy.benchmarking.environment import environment

    names = devices.cuda_device_names()
    if options.device == "cuda" and not names:
        sys.exit("error: the NVIDIA driver reports no GPU; there is nothing to measure here")
    machine = names[0] if options.device == "cuda" else devices.cpu_name()
    folder = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-").lower()
    target = options.output or HERE / "results" / folder / "gpu_paper.json"
    target.parent.mkdir(parents=True, exist_ok=True)

    deadline = time.perf_counter() + 60 * options.minutes
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
        left = deadline - time.perf_counter()
        if left < LEAST_SECONDS:
            print(f"no time is left for {words}", file=sys.stderr, flush=True)
            facts.setdefault("left_out", []).append(words)
            write(target, done)
            continue
        print(f"{words}: {min(left, section.seconds):.0f} s", file=sys.stderr, flush=True)

        def save(report: Any) -> None:
            write(target, [*done, report.to_dict()])

        try:
            done.append(run(section, options, min(left, section.seconds), save).to_dict())
        except Exception as error:  # one broken section must not cost the others
            failed.append(f"{words}: {type(error).__name__}: {error}")
            facts.setdefault("failed", []).append(traceback.format_exc())
        write(target, done)
    print(target)
    sys.exit("failed:\n" + "\n".join(failed) if failed else 0)


def run(section: Section, options: argparse.Namespace, seconds: float, save: Any) -> Any:
    """Measure one section."""
    from eomt_deploy.benchmarking.suite import SuiteConfig, run_suite
    from eomt_deploy.catalog import find_suite

    config = SuiteConfig(
        suite=find_suite(section.suite),
        rows=section.rows,
        size=(options.size, options.size) if options.size else None,
        backbone=options.backbone,
        runtimes=section.runtimes,
        device=options.device,
        precision=section.precision if options.device == "cuda" else "fp32",
        sampling=section.sampling,
        budget=seconds,
    )
    return run_suite(config, tell=lambda text: print(f"  {text}", file=sys.stderr), save=save)


def write(target: Path, sections: list[dict[str, Any]]) -> None:
    """All sections so far, whole or not at all."""
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps({"schema": 1, "kind": "sections", "sections": sections}) + "\n")
    part.replace(target)


if __name__ == "__main__":
    main()
