"""Speed, memory and resume of `eomt-deploy batch`.

    python benchmarks/batch.py speed --images 40 --rounds 3 [--parts-only]
    python benchmarks/batch.py kills --images 2000 --kills 10
    python benchmarks/batch.py memory --images 100000

`speed` compares the batch job with a plain `stream` loop, and with a DataLoader loop over
transformers, on the same network with random weights (EoMT-S) and the same images, in
random order. It also measures decoding and the network alone. `kills` ends the driver or a worker
with signal 9 at random times, repeats the command until it is done, and compares the union of the
shards with the list of images. `memory` adds up the memory of all processes of a run on small
images. Both use the embedded model.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.measure.statistics import percentile, speedup
from eomt_deploy.cli.console import write_json
from eomt_deploy.data_files import folder as data_folder

SHOWN_SECONDS = 1.0
MAX_POINTS = 200
"""Approximate number of points of a stored memory curve."""


def write_images(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Drawn scenes, shifted so that no two are equal, as JPEG of (H, W)."""
    folder.mkdir(parents=True)
    height, width = size
    scenes = []
    for path in sorted((data_folder("examples") / "scenes").glob("*.png")):
        scenes.append(np.asarray(Image.open(path).convert("RGB").resize((width, height))))
    paths = []
    for number in range(count):
        pixels = np.roll(scenes[number % len(scenes)], number // len(scenes), axis=1)
        paths.append(folder / f"{number:06}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def command(model: Path, images: Path, output: Path, *more: object) -> list[str]:
    line = [sys.executable, "-m", "eomt_deploy", "batch", model, images, "-o", output, *more]
    return [str(word) for word in line]


def tiny_model(folder: Path) -> Path:
    """The embedded model as ONNX."""
    path = folder / "tiny.onnx"
    export = [sys.executable, "-m", "eomt_deploy", "export", "eomt-tiny-scenes", "-o", str(path)]
    subprocess.run(export, check=True, capture_output=True)
    return path


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all shards, without the segments."""
    from pyarrow import parquet

    columns = ["index", "path", "error"]
    paths = sorted((output / "shards").glob("*.parquet"))
    return [row for path in paths for row in parquet.read_table(path, columns=columns).to_pylist()]


def is_exact(output: Path, paths: list[Path]) -> bool:
    """Whether each image is in exactly one row, without an error."""
    found = sorted((row["index"], row["path"]) for row in read_rows(output))
    no_error = all(row["error"] is None for row in read_rows(output))
    return no_error and found == [(i, str(path)) for i, path in enumerate(paths)]


def processes(ancestor: int) -> dict[int, tuple[str, float]]:
    """Name and memory in MB (proportional set size) of a process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = {}
    for process in parents:
        above = process
        while above != ancestor and above in parents:
            above = parents[above]
        if above == ancestor:
            try:
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                name = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            size = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            found[process] = (name, size / 1024)
    return found


def kind_of(name: str) -> str:
    """The kind of a process of Ray, without paths and numbers of this machine."""
    return name.split("(")[0].split(".")[0].strip() if name.startswith("ray::") else "Ray services"


def _workers(driver: int) -> dict[int, str]:
    """Names of the Ray workers of a run that a kill can hit."""
    names = {pid: name.split("(")[0].strip() for pid, (name, _) in processes(driver).items()}
    kinds = ("MapWorker", "Decoder", "Writer", "Progress")
    return {p: name for p, name in names.items() if any(kind in name for kind in kinds)}


def kills(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Kill a run again and again; it must end with each image exactly once."""
    paths = write_images(work / "in", options.images, (120, 160))
    model, output = options.model or tiny_model(work), work / "out"
    line = command(model, work / "in", output, "--shard-size", options.shard_size)
    rng = random.Random(options.seed)
    events: list[dict[str, Any]] = []
    runs = 0
    while True:
        runs += 1
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while process.poll() is None and len(events) < options.kills:
            # Every fourth kill can also hit the start; the others wait for the first model.
            waits_for_models = len(events) % 4 > 0
            while waits_for_models and process.poll() is None and not _workers(process.pid):
                time.sleep(0.5)
            time.sleep(rng.uniform(*options.between))
            if process.poll() is not None:
                break
            workers = _workers(process.pid)
            # Every second kill hits a worker, if there is one already.
            chosen = rng.choice(list(workers)) if workers and len(events) % 2 else None
            victim = chosen or process.pid
            os.kill(victim, signal.SIGKILL)
            done = len(list((output / "shards").glob("*.parquet")))
            kind = workers[chosen] if chosen else "driver"
            events.append({"killed": kind, "finished_shards": done})
            print(f"kill {len(events)}: {kind}, {done} shards were finished", flush=True)
            if victim == process.pid:
                break
        text = process.communicate()[0].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, text
    exact = is_exact(output, paths)
    print(f"{runs} runs, {len(events)} kills, exact: {exact}; {text.strip().splitlines()[-1]}")
    return {"kind": "batch-kills", "runs": runs, "kills": events, "exact": exact}


def memory(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The memory of all processes of a run, and of the largest ones."""
    paths = write_images(work / "in", options.images, (48, 64))
    model, output = options.model or tiny_model(work), work / "out"
    line = command(model, work / "in", output, "--shard-size", options.shard_size)
    start = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    curve: list[tuple[float, float]] = []
    peak: dict[str, float] = {}
    while process.poll() is None:
        found = processes(process.pid)
        curve.append((time.monotonic() - start, sum(size for _, size in found.values())))
        for number, (name, size) in found.items():
            kind = "driver" if number == process.pid else kind_of(name)
            peak[kind] = max(peak.get(kind, 0.0), size)
        time.sleep(SHOWN_SECONDS)
    text = process.communicate()[0].decode()
    assert process.returncode == 0, text
    tenths = [curve[int(i * (len(curve) - 1) / 10)] for i in range(11)]
    for seconds, size in tenths:
        print(f"{seconds:6.0f} s: {size:6.0f} MB")
    print(f"peak {max(size for _, size in curve):.0f} MB; {text.strip().splitlines()[-1]}")
    highest = max(size for _, size in curve)
    shown = curve[:: max(1, len(curve) // MAX_POINTS)]
    return {
        "kind": "batch-memory", "exact": is_exact(output, paths), "peak": highest, "curve": shown,
        "peak_by_process": peak,
    }  # fmt: skip


def random_network(folder: Path, size: int) -> Path:
    """A folder of transformers with an EoMT-S with random weights, as after training."""
    import torch
    from transformers import EomtConfig, EomtForUniversalSegmentation

    torch.manual_seed(0)
    config = EomtConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_blocks=3,
        num_queries=200, image_size=size, num_register_tokens=4,
        id2label={i: f"class {i}" for i in range(133)},
    )  # fmt: skip
    network = EomtForUniversalSegmentation(config).eval()
    network.attn_mask_probs.zero_()
    network.save_pretrained(folder)
    return folder


def export_network(network: Path, path: Path) -> Path:
    import json

    from eomt_deploy.exporting import ExportConfig, export

    names = [{"name": f"class {i}", "thing": i < 80} for i in range(133)]
    classes = network / "classes.json"
    classes.write_text(json.dumps(names))
    export(ExportConfig(str(network), path, task="panoptic", classes=classes))
    return path


def transformers_loop(
    network: Path, size: int, paths: list[Path], threads: int
) -> Callable[[], None]:
    """A DataLoader that reads and prepares images, and the model of transformers."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from transformers import EomtForUniversalSegmentation
    from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

    torch.set_num_threads(threads)
    edges = {"shortest_edge": size, "longest_edge": size}
    processor = EomtImageProcessorPil(do_split_image=False, do_pad=True, size=edges)
    model = EomtForUniversalSegmentation.from_pretrained(network).eval()

    class Images(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            image = Image.open(paths[index]).convert("RGB")
            return processor(images=image, return_tensors="pt"), image.size[::-1]

    def run() -> None:
        loader = DataLoader(Images(), batch_size=None, num_workers=1)
        with torch.inference_mode():
            for inputs, image_size in loader:
                inputs.pop("patch_offsets", None)
                outputs = model(**inputs)
                processor.post_process_panoptic_segmentation(
                    outputs, target_sizes=[image_size], stuff_classes=list(range(80, 133))
                )

    return run


def speed(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Images per second of complete loops and of their parts, in random order."""
    from eomt_deploy.batch import BatchConfig
    from eomt_deploy.batch import run as run_batch

    paths = write_images(work / "in", options.images, (480, 640))
    network = random_network(work / "network", options.size)
    model = export_network(network, work / "model.onnx")
    threads = len(os.sched_getaffinity(0))
    segmenter = Segmenter(model).warmup()
    prepared = segmenter.processor.preprocess(paths[0])[0]

    def decoding() -> None:
        for path in paths:
            segmenter.processor.preprocess(path)

    def network_only() -> None:
        for _ in paths:
            segmenter.engine.run(prepared)

    def stream() -> None:
        for result in segmenter.stream(paths):
            result.to_dict(masks="rle")

    loops: dict[str, Callable[[], None]] = {
        "decoding alone": decoding, "network alone": network_only,
    }  # fmt: skip
    if not options.parts_only:
        loops["stream"] = stream
        loops["DataLoader + transformers"] = transformers_loop(
            network, options.size, paths, threads
        )
    seconds: dict[str, list[float]] = {name: [] for name in ("batch", *loops)}
    for name, took in _rounds(loops, options, run_batch, BatchConfig, model, work):
        seconds[name].append(took)
        print(f"{name}: {len(paths) / took:.3g} images/s", flush=True)
    slower = max(("decoding alone", "network alone"), key=lambda n: percentile(seconds[n], 50))
    ratios = {}
    for name in loops:
        ratio = speedup(seconds[name], seconds["batch"])
        ratios[name] = ratio.to_dict()
        rate = len(paths) / percentile(seconds[name], 50)
        print(
            f"{name}: {rate:.3g} images/s; batch is {ratio.value:.3f} "
            f"({ratio.low:.3f}-{ratio.high:.3f}) times as fast"
        )
    print(f"batch: {len(paths) / percentile(seconds['batch'], 50):.3g} images/s; slower: {slower}")
    return {"kind": "batch-speed", "seconds": seconds, "slower_part": slower, "ratios": ratios}


def _rounds(
    loops: dict[str, Callable[[], None]],
    options: argparse.Namespace,
    run_batch: Any,
    config: Any,
    model: Path,
    work: Path,
) -> Iterator[tuple[str, float]]:
    """Each loop once per round, in random order; of a batch job from its first open model."""
    rng = random.Random(options.seed)
    for number in range(options.rounds):
        for name in rng.sample(["batch", *loops], len(loops) + 1):
            start = time.perf_counter()
            if name == "batch":
                output = work / f"out{number}"
                report = run_batch(
                    config(model, (str(work / "in"),), str(output), shard_size=options.shard_size)
                )
                shutil.rmtree(output)
                yield name, report.seconds
            else:
                loops[name]()
                yield name, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "kills", "memory"))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=640, help="height and width of the network")
    parser.add_argument(
        "--parts-only", action="store_true", help="do not time the other complete loops"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--between", type=float, nargs=2, default=(1.0, 15.0), metavar="SECONDS")
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--model", type=Path, help="model file (default: the embedded model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Ray gives its workers a low priority; on a busy machine the comparison would be unfair.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as name:
        found = {"speed": speed, "kills": kills, "memory": memory}[options.what](
            options, Path(name)
        )
    if options.json:
        write_json(
            options.json,
            {"schema": 1, **found, "images": options.images, "environment": environment()},
        )


if __name__ == "__main__":
    main()
