"""ONNX Runtime and AOTInductor on a GPU: agreement with the reference, time of the network and of a
photo."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_model import random_small, with_precision

from eomt_deploy import Segmenter
from eomt_deploy.backends import Engine
from eomt_deploy.backends.aotinductor.engine import AotInductorEngine, save_package
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from eomt_deploy.benchmarking.measure.clock import interleave
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.fp8 import use_fp8
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import quantize_layers
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.network.folds import fold
from eomt_deploy.network.masked import choose_attention
from eomt_deploy.package_metadata import attention_kernels
from eomt_deploy.precision import PRECISIONS

CASES = (("S", "fp32"), ("S", "fp16"), ("L", "fp16"))
PACKAGES = (("L", "fp16"), ("L", "fp8"), ("S", "fp16"))
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
        path = folder / name
        found[f"EoMT-{shape} {precision}"] = measured(
            OnnxRuntimeEngine(path, device="cpu"),
            OnnxRuntimeEngine(path, device=device),
            open_gpu(path),
            rounds,
        )
    return found


def aotinductor_gpu(
    folder: Path,
    open_gpu: Callable[[Path], Any],
    *,
    device: str = "cuda",
    cases: Sequence[tuple[str, str]] = PACKAGES,
    rounds: int = 50,
    networks: Callable[[str], tuple[Any, Any]] = random_small,
) -> dict[str, Any]:
    """Measure :class:`AotInductorGpuEngine` as :func:`onnxruntime_gpu`, and the compile time."""
    found = {}
    for shape, precision in cases:
        network, spec = networks(shape)
        spec = with_precision(spec, precision)
        compiled = fold(copy.deepcopy(network))
        layers = {}
        if precision == "fp8":
            layers = quantize_layers(compiled, observe(compiled, [noise(spec)]), "fp8", "minmax")
        choose_attention(compiled.backbone, "sdpa")
        compiled = compiled.to(device, getattr(torch, PRECISIONS[precision].dtype))
        use_fp8(compiled, layers)
        path = folder / f"{shape}.{precision}.pt2"
        began = time.monotonic()
        save_package(compiled, spec, path)
        seconds = time.monotonic() - began
        found[f"EoMT-{shape} {precision}"] = {
            "compile_s": round(seconds, 1),
            "attention": dict(attention_kernels(path)),
            **measured(
                NetworkEngine(network, spec),
                AotInductorEngine(path, device=device, threads=None),
                open_gpu(path),
                rounds,
            ),
        }
    return found


def noise(spec: Any) -> Any:
    """One network input for the calibration of random weights."""
    return np.random.default_rng(0).integers(0, 256, (1, *spec.image_size, 3), np.uint8)


def measured(exact: Engine, copies: Engine, engine_on_gpu: Any, rounds: int) -> dict[str, Any]:
    """Results for one model file. With random weights, labels mean nothing.

    Args:
        exact: the engine that computes the wanted logits.
        copies: an engine that copies everything between CPU and GPU.
        engine_on_gpu: the engine to measure.
        rounds: number of measured calls.
    """
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*PHOTO, 3), np.uint8)
    with (
        Segmenter(exact) as reference,
        Segmenter(copies) as copying,
        Segmenter(engine_on_gpu) as segmenter,
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
