"""Speedup of the graph changes on the CPU, and the largest difference of the outputs.

    python benchmarks/cpu_graph.py MODEL.onnx... [--rounds 15] [--json FILE]

Each model runs as exported, and as changed by :mod:`eomt_deploy.backends.openvino.graph` or
:mod:`eomt_deploy.backends.onnxruntime.graph`, in interleaved rounds. The latter leaves FP32 models
unchanged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from cpu_cases import console, show, time_jobs

from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from eomt_deploy.backends.openvino.engine import OpenVinoEngine
from eomt_deploy.benchmarking.machine.environment import environment

BACKENDS: dict[str, Callable[[Path, bool], Engine]] = {
    "openvino": lambda path, reshape: OpenVinoEngine(path, cache=False, reshape=reshape),
    "onnxruntime": lambda path, reshape: OnnxRuntimeEngine(path, device="cpu", reshape=reshape),
}
ROWS = {"as exported": False, "reshaped": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for model, backend in product(options.models, BACKENDS):
        engines = {name: BACKENDS[backend](model, on) for name, on in ROWS.items()}
        if backend == "onnxruntime" and engines["reshaped"].arithmetic is None:
            continue
        size = engines["reshaped"].spec.image_size
        images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        outputs = [engine.run(images) for engine in engines.values()]
        errors = [
            float(np.abs(after - before).max() / np.abs(before).max())
            for before, after in zip(*outputs, strict=True)
        ]
        jobs = {name: partial(engine.run, images) for name, engine in engines.items()}
        case = {
            "section": "graph",
            "case": f"{model.name} in {backend}",
            "largest_relative_difference": max(errors),
            "rows": time_jobs(jobs, options.rounds, 0),
        }
        show(case)
        console.print(f"largest logit difference: {max(errors):.1e} of the largest logit")
        cases.append(case)
        for engine in engines.values():
            engine.close()
    if options.json:
        data = {"schema": 1, "kind": "cpu-graph", "environment": environment(), "cases": cases}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
