"""Delegate calls and speed of ExecuTorch programs before and after the network is rewritten.

    python benchmarks/executorch_delegate.py MODEL.onnx... [--rounds 30] [--json FILE]

Each FP32 model is built twice: with the operators of its graph (``as exported``), and in the
operators that XNNPACK has (``rewritten``, as `eomt-deploy build` does). Both run in interleaved
rounds with ONNX Runtime on the ``.onnx`` file.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cpu_cases import console, show, time_jobs

from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.executorch.build import build_executorch
from eomt_deploy.backends.executorch.config import ExecuTorchConfig
from eomt_deploy.backends.executorch.engine import ExecuTorchEngine
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from eomt_deploy.benchmarking.machine.environment import environment

FORMS = {"as exported": False, "rewritten": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for model in options.models:
        with TemporaryDirectory() as folder:
            cases.append(measure_model(model, Path(folder), options.rounds))
    if options.json:
        facts = environment()
        data = {"schema": 1, "kind": "executorch", "environment": facts, "cases": cases}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


def measure_model(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    engines: dict[str, Engine] = {}
    counts = {}
    for name, rewrite in FORMS.items():
        path = folder / f"{rewrite}.pte"
        report = build_executorch(ExecuTorchConfig(model, path, check=False, rewrite=rewrite))
        counts[name] = {"delegate_calls": report.delegate_calls, "outside": report.outside}
        engines[name] = ExecuTorchEngine(path, device=None, threads=None)
    engines["ONNX Runtime"] = OnnxRuntimeEngine(model, device="cpu")
    size = engines["rewritten"].spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    wanted = engines["ONNX Runtime"].run(images)
    errors = {
        name: max(
            float(np.abs(have - want).max() / np.abs(want).max())
            for have, want in zip(engines[name].run(images), wanted, strict=True)
        )
        for name in FORMS
    }
    case = {
        "section": "executorch",
        "case": model.name,
        "largest_relative_difference": errors,
        "counts": counts,
        "rows": time_jobs({n: partial(e.run, images) for n, e in engines.items()}, rounds, 0),
    }
    show(case)
    for name, found in counts.items():
        console.print(
            f"{name}: {found['delegate_calls']} delegate calls; outside: {found['outside']}; "
            f"largest difference {errors[name]:.1e} of the largest logit"
        )
    for engine in engines.values():
        engine.close()
    return case


if __name__ == "__main__":
    main()
