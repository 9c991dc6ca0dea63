"""Time `eomt-deploy predict` on a folder of small images, against another checkout of this project.

    python benchmarks/predict_folder.py --baseline ../before --images 1000 --rounds 6

Both run the same model file on the same images, in random order, as complete processes. The time is
mostly spent outside the network: reading, checking and writing files. The baseline needs its
compiled kernels (run `pip install -e .` there, or copy them).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.measure.statistics import percentile, speedup
from eomt_deploy.cli.console import write_json

HERE = Path(__file__).resolve().parents[1]
SIZE = (48, 64)


def write_images(folder: Path, count: int) -> None:
    """Write small images with structure, the same in every run."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        pixels = np.kron(coarse, np.ones((SIZE[0] // 6, SIZE[1] // 8, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{index:05}.png")


def predict(checkout: Path, model: Path, images: Path, output: Path, backend: str) -> float:
    """Run one complete command; returns milliseconds."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "eomt_deploy", "predict", model, images, "-o", output]
    start = time.perf_counter()
    subprocess.run(
        [*map(str, command), "--backend", backend],
        cwd=checkout, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, required=True, help="the other checkout")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkouts = {"before": options.baseline.resolve(), "after": HERE}
    times: dict[str, list[float]] = {name: [] for name in checkouts}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model, images = work / "tiny.onnx", work / "images"
        export = [
            sys.executable, "-m", "eomt_deploy", "export", "eomt-tiny-scenes", "--size", "64",
            "-o", model,
        ]  # fmt: skip
        # Export with the older code, so that both can read the model.
        subprocess.run(
            list(map(str, export)), cwd=options.baseline, check=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(checkouts["before"])},
        )  # fmt: skip
        write_images(images, options.images)
        for _ in range(options.rounds):
            for row in rng.permutation(list(checkouts)):
                output = work / "out"
                took = predict(checkouts[row], model, images, output, options.backend)
                times[row].append(took)
                print(f"{row}: {took / options.images:.2f} ms per image", flush=True)
    ratio = speedup(times["before"], times["after"])
    print(
        f"{options.images} images, {options.rounds} rounds: after is {ratio.value:.3f} "
        f"({ratio.low:.3f}-{ratio.high:.3f}) times as fast as before: {ratio.finding}; "
        f"{percentile(times['after'], 50) / options.images:.2f} ms per image"
    )
    if options.json:
        write_json(
            options.json,
            {"schema": 1, "kind": "predict-folder", "environment": environment(),
             "images": options.images, "backend": options.backend, "milliseconds": times,
             "ratio": ratio.to_dict()},
        )  # fmt: skip


if __name__ == "__main__":
    main()
