"""Compare the results of a real tritonserver with those of `Segmenter`.

    python benchmarks/triton_results.py --images 50 --json triton.json

The server is the one in the package nvidia-pytriton, which has only the Python backend. So the
network of the forms bls and ensemble is run by Python, too: their results are real, but their times
are not those of Triton's own backends and are not measured. The images are drawn scenes of
different sizes, encoded as JPEG; the models are exports of the embedded checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import triton_server
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.measure.statistics import percentile
from eomt_deploy.cli.console import write_json
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.files import cache_folder
from eomt_deploy.spec import TASKS
from eomt_deploy.triton.options import FORMS, TritonConfig
from eomt_deploy.triton.repository import write_repository

CLIENTS = 4
"""Number of requests at the same time when throughput is measured."""


def draw_images(folder: Path, count: int) -> list[bytes]:
    """Encoded scenes; every third is cut to a wide or high strip, which needs more windows."""
    program = triton_server.ROOT / "examples" / "tiny_checkpoint" / "scenes.py"
    command = [sys.executable, program, folder, "--count", str(count), "--seed", "20"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    images = []
    for index, path in enumerate(sorted(folder.rglob("*.png"), key=lambda p: p.name)):
        if "panoptic" in path.parent.name:  # labels
            continue
        image = Image.open(path).convert("RGB")
        if index % 3 == 0:
            image = image.crop((0, 0, image.width, max(8, image.height // 3)))
        elif index % 3 == 1:
            image = image.crop((0, 0, max(8, image.width // 2), image.height))
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=92)
        images.append(buffer.getvalue())
    return images[:count]


def sender(module: Any, address: str) -> Callable[[str, bytes], str]:
    """A function that sends one image to a model and returns the text of its result."""
    own = threading.local()  # the HTTP client may only be used by the thread that created it

    def send(model: str, image: bytes) -> str:
        if not hasattr(own, "client"):
            own.client = module.InferenceServerClient(address)
        tensor = module.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        text: bytes = own.client.infer(model, [tensor]).as_numpy("result")[0, 0]
        return text.decode()

    return send


def throughput(send: Callable[[bytes], Any], images: list[bytes], rounds: int) -> list[float]:
    """Images per second, in each round, with several requests at the same time."""
    rates = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(send, images))
            rates.append(len(images) / (time.perf_counter() - start))
    return rates


def local_rates(segmenter: Segmenter, images: list[bytes], rounds: int) -> list[float]:
    """Images per second of `Segmenter.stream` in this process, with the same output."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for result in segmenter.stream(images):
            result.to_json(masks="rle")
        rates.append(len(images) / (time.perf_counter() - start))
    return rates


def measure(work: Path, images: list[bytes], rounds: int, installed: Path) -> Iterator[dict]:
    """One row for each task."""
    repository = work / "repo"
    models = {}
    for task in TASKS:
        path = models[task] = work / f"{task}.onnx"
        export(ExportConfig("eomt-tiny-scenes", path, task=task, allow_stuff=task == "instance"))
        for form in FORMS:
            name = f"{task}-{form}"
            options = TritonConfig(
                (path,), repository, name=name, form=form, device="cpu", instances=1, max_batch=16
            )
            write_repository(options)
            if form != "python":
                triton_server.run_network_in_python(repository / f"{name}_network")
    with triton_server.TritonServer(repository, installed, work / "log.txt") as server:
        http = sender(tritonclient.http, server.http)
        grpc = sender(tritonclient.grpc, server.grpc)
        for task in TASKS:
            with Segmenter(models[task], device="cpu") as segmenter:
                results = [segmenter.predict(image) for image in images]
                wanted = [result.to_json(masks="rle") for result in results]
                windows = [segmenter.processor.preprocess(image)[1].num_inputs for image in images]
                row: dict[str, Any] = {"task": task, "images": len(images)}
                row["network_inputs"] = {"min": min(windows), "max": max(windows)}
                row["identical"] = {
                    f"{form}, {protocol}": sum(
                        send(f"{task}-{form}", image) == text
                        for image, text in zip(images, wanted, strict=True)
                    )
                    for form in FORMS
                    for protocol, send in (("HTTP", http), ("gRPC", grpc))
                }
                row["reply_bytes"] = percentile([len(text.encode()) for text in wanted], 50)
                row["mask_bytes"] = percentile(
                    [len(r) * r.size[0] * r.size[1] for r in results], 50
                )
                if rounds:
                    over_http = partial(http, f"{task}-python")
                    over_grpc = partial(grpc, f"{task}-python")
                    row["images_per_second"] = {
                        "Segmenter": local_rates(segmenter, images, rounds),
                        "HTTP": throughput(over_http, images, rounds),
                        "gRPC": throughput(over_grpc, images, rounds),
                    }
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=0, help="number of rounds to time as well")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    if reason := triton_server.problem():
        sys.exit(f"tritonserver cannot run here: {reason}")
    installed = cache_folder() / "tritonserver"
    installed.mkdir(parents=True, exist_ok=True)
    triton_server.install(installed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        images = draw_images(Path(name) / "scenes", arguments.images)
        for row in measure(Path(name), images, arguments.rounds, installed):
            rows.append(row)
            print(json.dumps(row), flush=True)
    wrong = [
        f"{row['task']}, {how}: {count} of {row['images']}"
        for row in rows
        for how, count in row["identical"].items()
        if count != row["images"]
    ]
    if arguments.json:
        write_json(arguments.json, {"environment": environment(), "rows": rows})
    if wrong:
        sys.exit("results differ: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
