"""ONNX Runtime on a GPU: agreement with the CPU, and the time of the network and of a photo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from random_model import random_small, with_precision

from eomt_deploy import Segmenter
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from eomt_deploy.benchmarking.measure.clock import interleave
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.network.folds import fold

CASES = (("S", "fp32"), ("S", "fp16"), ("L", "fp16"))
PHOTO = (1080, 1920)


def onnxruntime_gpu(
    folder: Path,
    open_gpu: Callable[[Path], Any],
    *,
    device: str = "cuda",
    cases: Sequence[tuple[str, str]] = CASES,
    rounds: int = 50,
    networks: Callable[[str], tuple[Any, Any]] = random_small,
) -> dict[str, Any]:
    """Measure :class:`OnnxRuntimeGpuEngine`, and the engine that copies everything for comparison.

    Args:
        folder: folder for the model files.
        open_gpu: opens the engine to measure.
        device: device of the engine for comparison.
        cases: shapes and precisions.
        rounds: number of measured calls.
        networks: makes the network and its description for a shape.
    """
    found = {}
    for shape, precision in cases:
        network, spec = networks(shape)
        network = fold(network)
        lowered = describe(graph.trace(network, spec), spec)
        if precision != "fp32":
            lowered = lower(lowered, Lowering(precision))
        name = f"{shape}.{precision}.onnx"
        graph.save(lowered, with_precision(spec, precision), folder, name)
        found[f"EoMT-{shape} {precision}"] = measured(folder / name, open_gpu, device, rounds)
    return found


def measured(
    path: Path, open_gpu: Callable[[Path], Any], device: str, rounds: int
) -> dict[str, Any]:
    """Results for one model file. With random weights, labels mean nothing."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*PHOTO, 3), np.uint8)
    with (
        Segmenter(OnnxRuntimeEngine(path, device="cpu")) as reference,
        Segmenter(OnnxRuntimeEngine(path, device=device)) as copying,
        Segmenter(open_gpu(path)) as segmenter,
    ):
        engine = segmenter.engine
        images = reference.processor.preprocess(photo)[0]
        wanted, have = reference.engine.run(images), engine.run(images)
        buffer = engine.input(1)

        def network() -> None:
            engine.run_device(buffer)
            engine.gpu.synchronize(engine.stream)

        works: dict[str, Callable[[], Any]] = {
            "network_ms": network,
            "predict_ms": lambda: segmenter.predict(photo),
            "copying_network_ms": lambda: copying.engine.run(images),
            "copying_predict_ms": lambda: copying.predict(photo),
        }
        times = interleave(works, warmup=3, iterations=rounds)
        return {
            "error": float(np.abs(have[1] - wanted[1]).max() / np.abs(wanted[1]).max()),
            "cuda_graph": engine.cuda_graph,
            **{name: round(float(np.median(values)), 3) for name, values in times.items()},
        }
