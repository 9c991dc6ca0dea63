"""What each change of the graph brings on the CPU, and that the numbers stay.

    python benchmarks/cpu_graph.py MODEL.onnx... [--rounds 15] [--json FILE]

Every model runs with OpenVINO as exported and as :mod:`eomt_deploy.engines.openvino_graph`
reshapes it, in turn.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from cpu_cases import console, show, time_jobs

from eomt_deploy.benchmarking.environment import environment
from eomt_deploy.engines.openvino import OpenVinoEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for model in options.models:
        engines = {
            "as exported": OpenVinoEngine(model, cache=False, reshape=False),
            "reshaped": OpenVinoEngine(model, cache=False),
        }
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
            "case": model.name,
            "largest_relative_difference": max(errors),
            "rows": time_jobs(jobs, options.rounds, 0),
        }
        show(case)
        console.print(f"largest difference of a logit: {max(errors):.1e} of the largest logit")
        cases.append(case)
        for engine in engines.values():
            engine.close()
    if options.json:
        data = {"schema": 1, "kind": "cpu-graph", "environment": environment(), "cases": cases}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
