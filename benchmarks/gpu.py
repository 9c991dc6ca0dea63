"""Everything that needs a GPU, in one run with a time limit.

    python benchmarks/gpu.py --minutes 10        # writes JSON files to benchmarks/results/<gpu>/
    eomt-deploy bench --report benchmarks/results/<gpu>/gpu_paper_graph.json

The sections run in the order of their value. Each is a separate process with its own time limit, so
that a crash or a slow compiler costs only this section. A section writes its results while it runs,
and `gpu.json` has the outcome of all sections, also after an interruption. A section whose packages
are missing skips itself. The exit status is 1 if a section failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # eomt_deploy may not be installed
MIN_SECONDS = 15
"""Minimum remaining time for starting a section."""
KILL_SECONDS = 5
"""Time that a section has to end after its limit."""


@dataclass(frozen=True)
class Section:
    """One process.

    Attributes:
        name: name of the section, and of its JSON file.
        program: program in this folder, with its arguments.
        seconds: time limit.
        amx: run it only on a CPU with AMX.
    """

    name: str
    program: tuple[str, ...]
    seconds: float
    amx: bool = False


SECTIONS = (
    Section("gpu_check_processing", ("gpu_check.py", "--sections", "processing"), 90),
    Section("gpu_check_half", ("gpu_check.py", "--sections", "half-precision"), 60),
    Section("gpu_check_onnxruntime", ("gpu_check.py", "--sections", "onnxruntime"), 120),
    Section("gpu_check_tests", ("gpu_check.py", "--sections", "tests"), 110),
    # The paper's tables without a compiler: seconds per row.
    Section("gpu_paper_graph", ("gpu_paper.py", "--groups", "graph"), 75),
    Section("gpu_paper_package", ("gpu_paper.py", "--groups", "package"), 75),
    Section("gpu_check_aotinductor", ("gpu_check.py", "--sections", "aotinductor"), 240),
    Section("gpu_paper_compiled", ("gpu_paper.py", "--groups", "compiled"), 240),
    Section("gpu_graph", ("gpu_graph.py",), 150),
    Section("gpu_check_ladder", ("gpu_check.py", "--sections", "ladder"), 240),  # TensorRT
    Section("gpu_check_speed", ("gpu_check.py", "--sections", "speed"), 180),
    Section("cpu_end_to_end", ("cpu_end_to_end.py", "--runs", "1"), 300, amx=True),
)


@dataclass(frozen=True)
class Outcome:
    """How a section ended: ``passed``, ``failed``, ``stopped`` (time limit) or ``left out``."""

    name: str
    ended: str
    seconds: float
    file: str | None
    reason: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run everything that needs a GPU.")
    parser.add_argument("--minutes", type=float, default=10, help="Time limit (default: 10).")
    parser.add_argument(
        "--sections", nargs="+", choices=[s.name for s in SECTIONS], help="Default: all."
    )
    parser.add_argument("--output", type=Path, help="Folder (default: benchmarks/results/<gpu>).")
    options = parser.parse_args()
    from eomt_deploy import devices
    from eomt_deploy.benchmarking.machine.environment import environment

    gpu = devices.current_gpu()
    if gpu is None:
        sys.exit("error: the NVIDIA driver reports no GPU")
    folder = options.output or HERE / "results" / file_name(gpu.name)
    folder.mkdir(parents=True, exist_ok=True)
    flags = devices.cpu_flags()
    chosen = [
        section
        for section in SECTIONS
        if section.name in (options.sections or [section.name])
        and (not section.amx or "amx_int8" in flags)
    ]
    facts = {"schema": 1, "kind": "gpu-run", "environment": environment(), "gpu": asdict(gpu)}
    outcomes = run_all(chosen, folder, 60 * options.minutes, facts)
    sys.exit(1 if any(outcome.ended == "failed" for outcome in outcomes) else 0)


def file_name(gpu: str) -> str:
    """``NVIDIA H200`` -> ``nvidia-h200``."""
    words = "".join(c if c.isalnum() else " " for c in gpu).lower().split()
    return "-".join(words)


def run_all(
    sections: Sequence[Section], folder: Path, seconds: float, facts: dict[str, object]
) -> list[Outcome]:
    """Run sections until the time is over, and write ``gpu.json`` after each."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for section in sections:
        left = deadline - time.monotonic()
        if left < MIN_SECONDS:
            outcome = Outcome(section.name, "left out", 0, None, "the time is over")
        else:
            outcome = run(section, folder, min(section.seconds, left - KILL_SECONDS))
        print(
            f"{outcome.name}: {outcome.ended} after {outcome.seconds:.0f} s"
            + (f" ({outcome.reason})" if outcome.reason else ""),
            flush=True,
        )
        outcomes.append(outcome)
        part = folder / "gpu.json.part"
        content = {**facts, "sections": [asdict(outcome) for outcome in outcomes]}
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(folder / "gpu.json")
    return outcomes


def run(section: Section, folder: Path, seconds: float) -> Outcome:
    """Run one section in its own process group, which is killed after the time limit."""
    target = folder / f"{section.name}.json"
    log = folder / f"{section.name}.log"
    program, *arguments = section.program
    output = "--json" if program == "cpu_end_to_end.py" else "--output"
    command = [sys.executable, str(HERE / program), *arguments, output, str(target)]
    print(f"{section.name}: up to {seconds:.0f} s …", flush=True)
    began = time.monotonic()
    before = target.stat().st_mtime_ns if target.exists() else 0
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)  # also what the section itself has started
    written = target.exists() and target.stat().st_mtime_ns > before
    spent = time.monotonic() - began
    ended = "stopped" if code is None else "passed" if code == 0 else "failed"
    reason = "" if code in (0, None) else last_line(log) or f"exit code {code}"
    return Outcome(section.name, ended, round(spent, 1), target.name if written else None, reason)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


if __name__ == "__main__":
    main()
