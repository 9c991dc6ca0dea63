"""eomt-deploy compared with other projects that run EoMT, on the same weights and images.

    python benchmarks/peers.py [--tasks panoptic instance semantic] [--rounds 6] [--json FILE]
    python benchmarks/peers.py --page FILE     # rewrites docs/peers.md from such a file

Each row is a process of its own, with the Python of its own environment (`benchmarks/peers/`). The
environments are made in `build/peers` (several GB) in the first run, as are the exported files. The
rows of a task predict the same image in interleaved rounds, one at a time, on two cores. Weights
are random, with heads that have 20 certain queries for this image (`benchmarks/peers/weights.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peer_process import Peer, PeerError
from peer_table import page, show, summarize
from PIL import Image

from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.machine.state import CpuTimes, cpu_times, others_share
from eomt_deploy.benchmarking.measure.clock import Job, Rounds, measure
from eomt_deploy.cli.console import write_json
from eomt_deploy.devices import computes_in_bf16
from eomt_deploy.sources import built_in_images

HERE = Path(__file__).absolute().parent
DOCUMENT = HERE.parent / "docs" / "peers.md"
TASKS = ("panoptic", "instance", "semantic")
BASE = "transformers, PyTorch"
ENVIRONMENTS = {"libreyolo": "libreyolo", "lightly": "lightly-train", "getitune": "getitune"}
"""Family of rows -> its list of requirements; the other families use the Python of this program."""
PREPARE_SECONDS, START_SECONDS, ANSWER_SECONDS = 900, 300, 300


def rows_of(task: str) -> dict[str, tuple[str, str]]:
    """Title of each row -> family (a module of benchmarks/peers/) and the row's name there."""
    fast = "bf16" if computes_in_bf16() else "fp32"
    rows = {
        BASE: ("transformers", "torch"),
        f"eomt-deploy, OpenVINO {fast.upper()}": ("ours", f"openvino {fast}"),
        "eomt-deploy, OpenVINO INT8": (
            "ours", "openvino int8" + (" + bf16" if fast == "bf16" else "")
        ),
        "eomt-deploy, ONNX Runtime FP32": ("ours", "onnxruntime fp32"),
        "LibreYOLO, PyTorch": ("libreyolo", "torch"),
        "LibreYOLO, ONNX": ("libreyolo", "onnx"),
        "LibreYOLO, OpenVINO": ("libreyolo", "openvino"),
        "LightlyTrain, PyTorch": ("lightly", "torch"),
        "LightlyTrain, ONNX": ("lightly", "onnx"),
    }  # fmt: skip
    if task == "instance":
        rows |= {
            f"Geti, OpenVINO {precision.upper()}": ("getitune", f"openvino {precision}")
            for precision in ("fp32", "fp16", "int8")
        }
    return rows


OWN_PYTORCH = {
    "ours": BASE, "libreyolo": "LibreYOLO, PyTorch", "lightly": "LightlyTrain, PyTorch",
    "getitune": "Geti, PyTorch",
}  # fmt: skip
"""Row that an exported file of a family is compared with. Ours has the weights of transformers."""


def python_of(family: str, work: Path) -> Path:
    """Python of a family's environment, which is made if it is missing or has other versions."""
    if family not in ENVIRONMENTS:
        return Path(sys.executable)
    name = ENVIRONMENTS[family]
    wanted = HERE / "peers" / f"{name}.txt"
    folder = work / f"env-{name}"
    python, marker = folder / "bin" / "python", folder / "installed.sha256"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not (marker.is_file() and marker.read_text() == digest):
        print(f"making the environment of {name}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "-q", "--no-deps", "-r", wanted]
        subprocess.run(install, check=True)
        marker.write_text(digest)
    return python


def image_file(work: Path) -> Path:
    """An image of the package, enlarged to 1920x1080."""
    path = work / "image.jpg"
    if not path.is_file():
        image = Image.open(built_in_images()[0]).convert("RGB")
        image.resize((1920, 1080), Image.Resampling.BICUBIC).save(path, quality=92)
        calibration = work / "calibration"
        calibration.mkdir(exist_ok=True)
        for number, source in enumerate(built_in_images()):
            shutil.copy(source, calibration / f"{number}{source.suffix}")
    return path


def write_weights(task: str, work: Path) -> None:
    folder = work / f"{task}-transformers"
    if not (folder / "model.safetensors").is_file():
        print(f"writing the weights: {task}", flush=True)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "import weights; weights.write(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))"
        )
        arguments = [HERE / "peers", task, image_file(work), folder]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)


class Rows:
    """The running rows of one task."""

    def __init__(self, task: str, work: Path) -> None:
        self.task, self.work = task, work
        self.image, self.labels = image_file(work), work / "labels"
        self.labels.mkdir(exist_ok=True)
        self.peers: dict[str, Peer] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.cpu_seconds = 0.0

    def start(self, title: str, family: str, row: str) -> None:
        """Export what the row needs, start it, and predict once; an error becomes its result."""
        print(f"  {title}", flush=True)
        facts: dict[str, Any] = {"family": family}
        self.found[title] = facts
        name = f"{self.task}-{family}-{row.replace(' ', '-')}"
        log, prepared = self.work / "logs" / f"{name}.txt", self.work / "prepared" / name
        log.parent.mkdir(exist_ok=True)
        prepared.parent.mkdir(exist_ok=True)
        try:
            python = python_of(family, self.work.parent)
            line = [python, HERE / "peers" / "worker.py", family]
            rest = [self.task, row, self.work]
            if not prepared.exists():
                Peer([*line, "prepare", *rest], log, PREPARE_SECONDS).close()
                prepared.touch()
            peer = Peer([*line, "serve", *rest], log, START_SECONDS)
            self.peers[title] = peer
            facts["versions"] = peer.versions
            request = {"image": str(self.image), "labels": str(self._labels_of(title))}
            # The process is fresh: its peak is that of loading the model and of one prediction.
            facts["peak_bytes"] = peer.ask(request, ANSWER_SECONDS)["peak_bytes"]
        except (PeerError, subprocess.CalledProcessError) as error:
            print(f"    {error}", flush=True)
            facts["error"] = str(error)
            self.stop(title)

    def _labels_of(self, title: str) -> Path:
        return self.labels / f"{self.task}-{title.replace(', ', '-').replace(' ', '-')}.npy"

    def stop(self, title: str) -> None:
        if title in self.peers:
            self.peers.pop(title).close()

    def jobs(self) -> dict[str, Job]:
        """One prediction of each row that runs, timed by its own process."""
        request, timer = {"image": str(self.image)}, PeerTimer(self)
        return {
            title: Job(partial(peer.ask, request, ANSWER_SECONDS), timer)
            for title, peer in self.peers.items()
        }

    def agreements(self) -> None:
        """Add the share of pixels whose class is that of transformers, and of the own PyTorch."""
        for title, facts in self.found.items():
            if "error" in facts:
                continue
            pairs = {
                "equal_to_transformers": BASE,
                "equal_to_own": OWN_PYTORCH.get(facts["family"]),
            }
            for name, other in pairs.items():
                if other in self.found and other != title and "error" not in self.found[other]:
                    facts[name] = self._share(title, other)

    def _share(self, one: str, other: str) -> float:
        first, second = (np.load(self._labels_of(title)) for title in (one, other))
        return float((first == second).mean()) if first.shape == second.shape else 0.0


class PeerTimer:
    """Timer that takes the time from the answer of a peer, without the pipe between us."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def measure(self, work: Callable[[], Any]) -> tuple[float, float]:
        answer = work()
        self._rows.cpu_seconds += answer["cpu_seconds"]
        return 1000 * answer["seconds"], 1000 * answer["seconds"]


def measure_task(task: str, rounds: int, work: Path, seed: int) -> dict[str, Any]:
    """Start all rows of a task, time them in interleaved rounds, and compare their labels."""
    print(f"{task}:", flush=True)
    write_weights(task, work)
    rows = Rows(task, work)
    try:
        for title, (family, row) in rows_of(task).items():
            rows.start(title, family, row)
        if task == "instance":  # only for its labels: users run Geti's exported files
            rows.start("Geti, PyTorch", "getitune", "torch")
            rows.stop("Geti, PyTorch")
        rows.agreements()
        rows.found.pop("Geti, PyTorch", None)
        before = cpu_times()
        jobs = rows.jobs()
        # Each row has predicted once: that was its warm-up.
        measured = measure(jobs, Rounds(rounds, warmup=0), progress=_progress, seed=seed)
        others = _others(before, cpu_times(), rows.cpu_seconds)
        for title, facts in rows.found.items():
            if title in measured.samples:
                facts |= summarize(measured.samples[BASE], measured.samples[title], others)
    finally:
        for title in list(rows.peers):
            rows.stop(title)
    return {"others": others, "rows": rows.found}


def _progress(done: int) -> None:
    print(f"  round {done}", flush=True)


def _others(before: CpuTimes | None, after: CpuTimes | None, ours: float) -> float | None:
    """Share of the machine that programs used which are neither this one nor a row."""
    if before is None or after is None:
        return None
    ended = CpuTimes(after.wall, after.busy, after.own + ours)
    return others_share(before, ended, len(os.sched_getaffinity(0)))


def write_page(source: Path) -> None:
    DOCUMENT.write_text(page(json.loads(source.read_text()), source.relative_to(HERE.parent)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=6, help="measured rounds; 6 for a valid row")
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write docs/peers.md from a file")
    options = parser.parse_args()
    if options.page:
        write_page(options.page.absolute())
        return
    work = (options.work / "work").absolute()
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Mapping[str, Any]] = {}
    for seed, task in enumerate(options.tasks):
        found[task] = measure_task(task, options.rounds, work, seed)
        show(task, found[task])
        if options.json:  # after each task, in case the next one is interrupted
            data = {"schema": 1, "kind": "peers", "environment": environment(), "tasks": found}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, data)


if __name__ == "__main__":
    main()
