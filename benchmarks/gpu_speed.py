"""Latency and memory of TensorRT engines in every precision, interleaved with PyTorch FP16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_model import SIZE, random_small, with_precision

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.tensorrt.build import build
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.benchmarking.measure.clock import interleave
from eomt_deploy.cuda import DeviceArray, open_device
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.config import PRECISIONS, QUANTIZED
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import insert_qdq, quantize_layers
from eomt_deploy.network.folds import fold

EAGER = "PyTorch eager fp16"
ROUNDS, WARMUP = 100, 20
MEMORY_ROUNDS = 200


def engine_speed(folder: Path, targets: Sequence[str]) -> dict[str, Any]:
    """Time engines and PyTorch FP16, interleaved: EoMT-S at 640, batch 1, random weights."""
    network, spec = random_small()
    network = fold(network)
    works: dict[str, Callable[[], object]] = {}
    if torch.cuda.is_available():
        half = copy.deepcopy(network).to("cuda", torch.float16)
        black = torch.zeros((1, *SIZE, 3), dtype=torch.uint8, device="cuda")

        def eager() -> None:
            with torch.inference_mode():
                half(black)
            torch.cuda.synchronize()

        works[EAGER] = eager
    noise = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    seen = observe(network, [noise])
    memory: dict[str, Any] = {}
    opened = []
    device = open_device()
    model = describe(graph.trace(network, spec), spec)
    for target in targets:
        for precision in PRECISIONS:
            onnx = folder / f"s.{precision}.onnx"
            lowered = model
            if precision in QUANTIZED:
                layers = quantize_layers(network, seen, precision, "minmax")
                lowered = insert_qdq(lowered, layers, layers)
            if precision != "fp32":
                lowered = lower(lowered, Lowering(precision))
            graph.save(lowered, with_precision(spec, precision), folder, onnx.name)
            path = folder / f"s.{precision}.{target}.engine"
            build(TensorRtConfig(onnx, path, target=target, check=False))  # type: ignore[arg-type]
            engine: Any = open_engine(path)
            opened.append(engine)
            images = engine.input(1)

            def run(engine: Any = engine, images: DeviceArray = images) -> None:
                engine.run_device(images)
                device.synchronize(engine.stream)

            works[f"{target} {precision}"] = run
            run()
            before = device.memory()[0]
            for _ in range(MEMORY_ROUNDS):
                run()
            memory[f"{target} {precision}"] = {
                "engine_mb": round(engine.memory_bytes / 1e6),
                "grown_bytes": before - device.memory()[0],
                "cuda_graph": engine.cuda_graph,
            }
    samples = interleave(works, warmup=WARMUP, iterations=ROUNDS)
    for engine in opened:
        engine.close()
    base = float(np.median(samples[EAGER])) if EAGER in samples else None
    return {
        name: {
            "p50_ms": float(np.median(values)),
            "p95_ms": float(np.percentile(values, 95)),
            "times_faster_than_eager_fp16": base / float(np.median(values)) if base else None,
            **memory.get(name, {}),
        }
        for name, values in samples.items()
    }
