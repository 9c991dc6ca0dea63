"""Time and memory of an INT8 export of EoMT-S at 640x640, phase by phase.

    python benchmarks/calibration.py images/ --count 100
    python benchmarks/calibration.py images/ --count 8 --baseline ../before

Each export is a separate command on all cores, and the baseline takes turns with this checkout. The
weights are random: the time does not depend on them. A phase is the time between two progress
messages of different kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from eomt_deploy.benchmarking.machine.environment import environment

HERE = Path(__file__).parent
RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from eomt_deploy.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an INT8 export.")
    parser.add_argument("images", type=Path, help="Folder with images.")
    parser.add_argument("--count", type=int, default=100, help="Number of images (default: 100).")
    parser.add_argument("--runs", type=int, default=1, help="Runs of each checkout (default: 1).")
    parser.add_argument("--quick", action="store_true", help="Export with --quick.")
    parser.add_argument("--baseline", type=Path, help="Another checkout, to compare with.")
    parser.add_argument("--json", type=Path, help="File for the results.")
    options = parser.parse_args()
    checkouts = {"this": HERE.parent, **({"before": options.baseline} if options.baseline else {})}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint")
        chosen = folder / "images"
        chosen.mkdir()
        for path in sorted(options.images.glob("*.jpg"))[: options.count]:
            (chosen / path.name).symlink_to(path.resolve())
        for run in range(options.runs):
            for label, checkout in checkouts.items():
                more = ["--quick"] if options.quick and label == "this" else []
                row = {"checkout": label, "run": run, **export(checkout, folder, more)}
                rows.append(row)
                phases = ", ".join(
                    f"{name} {seconds:.0f} s ({row['phase_peak_bytes'].get(name, 0) / 1e9:.1f} GB)"
                    for name, seconds in row["phases"].items()
                    if seconds >= 1
                )
                print(
                    f"{label}: {row['seconds']:.0f} s, peak {row['peak_bytes'] / 1e9:.2f} GB; "
                    f"{phases}",
                    flush=True,
                )
    if options.json:
        found = {
            "kind": "calibration", "environment": environment(), "images": options.count,
            "quick": options.quick, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def write_checkpoint(folder: Path) -> None:
    """EoMT-S with random weights, 200 queries and COCO's panoptic classes."""
    torch.manual_seed(0)
    config = transformers.EomtConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_blocks=3,
        num_queries=200, image_size=640, patch_size=16, num_register_tokens=4,
        id2label={i: str(i) for i in range(133)},
    )  # fmt: skip
    model = transformers.EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    model.save_pretrained(folder)


def export(checkout: Path, folder: Path, more: list[str]) -> dict[str, Any]:
    """Run one export; return its time, the time of each phase, and its peak memory."""
    command = [
        sys.executable, "-c", RUN, str(checkout.resolve()), "export", str(folder / "checkpoint"),
        "--task", "panoptic", "--classes", "coco_panoptic", "--precision", "int8",
        "--calibrate", str(folder / "images"), "-o", str(folder / "m.onnx"), "--overwrite", *more,
    ]  # fmt: skip
    phases: dict[str, float] = {}
    peaks: dict[str, int] = {}
    began = last = time.perf_counter()
    phase = "start"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=folder
    ) as process:
        assert process.stderr is not None
        lines = []

        def watch() -> None:
            while process.returncode is None and (used := resident_bytes(process.pid)):
                peaks[phase] = max(peaks.get(phase, 0), used)
                time.sleep(0.05)

        threading.Thread(target=watch, daemon=True).start()
        for line in process.stderr:
            lines.append(line)
            now = time.perf_counter()
            phases[phase] = phases.get(phase, 0) + now - last
            # "calibrating (3 of 8 images)" and "measuring block 5 (…)" -> their first words
            phase = re.split(r" \(| on |\d", line.strip())[0].strip() or phase
            last = now
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("".join(lines[-10:]))
    end = time.perf_counter()
    phases[phase] = phases.get(phase, 0) + end - last
    return {
        "seconds": end - began,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "phases": {name: round(seconds, 2) for name, seconds in phases.items()},
        "phase_peak_bytes": peaks,
    }


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it has ended or the system does not report it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    main()
