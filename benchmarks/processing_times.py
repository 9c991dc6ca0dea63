"""Times of our pre- and post-processing on a GPU and on the CPU, and their agreement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from synthetic import HARD, KINDS, spec_of

from eomt_deploy.cuda import DeviceArray
from eomt_deploy.cuda.array import OwnedStream
from eomt_deploy.labels import label_map
from eomt_deploy.processing import Processor
from eomt_deploy.processing.cuda.kernels import Kernels
from eomt_deploy.processing.cuda.processor import CudaProcessor


def processing_times(
    device: Any, sizes: Any, rounds: int, kernels: Any = None, side: int | None = None
) -> dict[str, Any]:
    """Times in ms, and whether GPU and CPU give the same inputs and labels.

    Args:
        device: the GPU.
        sizes: image sizes (H, W) by name.
        rounds: number of measured calls.
        kernels: CUDA binary of the kernels; None compiles it.
        side: side of the network input; None takes that of the published models.
    """

    def milliseconds(work: Callable[[], Any]) -> float:
        work()
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return round(1000 * float(np.median(taken)), 3)

    def upload(values: Any) -> Any:
        array = DeviceArray.empty(device, values.shape, values.dtype)
        with device.active():
            device.to_device(array.pointer, np.ascontiguousarray(values), stream)
            device.synchronize(stream)
        array.stream = stream
        return array

    with device.active():
        stream = OwnedStream(device)
        loaded = Kernels(device, kernels) if kernels else None
    cases = [(task, "", size) for task in ("panoptic", "instance", "semantic") for size in sizes]
    cases += [(task, kind, next(iter(sizes))) for task, kind in HARD]
    found: dict[str, Any] = {}
    for task, kind, name in cases:
        queries, outputs = KINDS[kind]
        spec = spec_of(task, queries)
        if side:
            spec = replace(spec, image_size=(side, side))
        host = Processor(spec)
        image = np.random.default_rng(0).integers(0, 256, (*sizes[name], 3), np.uint8)
        wanted, geometry = host.preprocess(image)
        logits = outputs(spec, geometry)
        with CudaProcessor(spec, device, stream, kernels=loaded) as processor:
            arrays = [upload(array) for array in logits]
            inputs = processor.preprocess(image)[0].copy_to_host()
            mine = label_map(processor.postprocess(*arrays, geometry))
            row = {
                "inputs_equal": bool((inputs == wanted).all()),
                "kernels_equal_cpu": float(
                    (mine == label_map(host.postprocess(*logits, geometry))).mean()
                ),
            }
            works: dict[str, Callable[[], Any]] = {
                "gpu_pre_ms": lambda: (processor.preprocess(image), device.synchronize(stream)),  # noqa: B023
                "gpu_post_ms": partial(processor.postprocess, *arrays, geometry),
                "cpu_pre_ms": partial(host.preprocess, image),
                "cpu_post_ms": partial(host.postprocess, *logits, geometry),
            }
            found[f"{task} {name}{kind}"] = row | {k: milliseconds(w) for k, w in works.items()}
            found[f"{task} {name}{kind}"] |= kernel_times(works["gpu_post_ms"])
    return found


def kernel_times(work: Callable[[], Any], rounds: int = 5) -> dict[str, dict[str, float]]:
    """Microseconds per call of each kernel and copy; empty without a PyTorch that uses the GPU."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            work()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
    return {
        "gpu_post_kernels_us": {
            row.key[:60]: round(row.self_device_time_total / rounds, 1)
            for row in rows
            if row.self_device_time_total
        }
    }
