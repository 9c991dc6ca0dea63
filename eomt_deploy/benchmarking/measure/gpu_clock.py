"""Timers with CUDA events on the stream that the work runs on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.benchmarking.measure.clock import Job, Work


class TorchEventTimer:
    """Timer for PyTorch work on the current stream of one GPU.

    The device is idle before the start event. The time therefore includes launches that the GPU
    waits for, as for a user who sends one image at a time.
    """

    def __init__(self, device: Any = None) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        event: Any = torch.cuda.Event  # PyTorch does not annotate it
        self._start, self._end = event(enable_timing=True), event(enable_timing=True)

    def measure(self, work: Work) -> tuple[float, float]:
        stream = self._cuda.current_stream(self._device)
        self._cuda.synchronize(self._device)
        self._start.record(stream)
        begin = time.perf_counter_ns()
        work()
        host = time.perf_counter_ns() - begin
        self._end.record(stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)), host / 1e6


class DeviceEventTimer:
    """Timer for work of an engine of ours on its own stream.

    Args:
        engine: a GPU engine, see :class:`eomt_deploy.backends.engine.DeviceEngine`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._gpu = engine.gpu
        with self._gpu.active():
            self._start = self._gpu.event(timing=True)
            self._end = self._gpu.event(timing=True)

    def measure(self, work: Work) -> tuple[float, float]:
        stream = self._engine.stream
        with self._gpu.active():
            self._gpu.synchronize(stream)
            self._gpu.record(self._start, stream)
            begin = time.perf_counter_ns()
            work()
            host = time.perf_counter_ns() - begin
            self._gpu.record(self._end, stream)
            self._gpu.wait_event(self._end)
            return float(self._gpu.elapsed_ms(self._start, self._end)), host / 1e6


def network_job(engine: Any, images: npt.NDArray[np.uint8]) -> Job:
    """Job that runs an engine on inputs that are on its device; the outputs also stay there.

    An engine that only takes and returns host memory is timed with its copies.

    Args:
        images: uint8 [B, H, W, 3], RGB.
    """
    if not hasattr(engine, "run_device"):
        return Job(lambda: engine.run(images))
    resident = engine.input(len(images))
    with engine.gpu.active():
        engine.gpu.to_device(resident.pointer, np.ascontiguousarray(images), engine.stream)
        engine.gpu.synchronize(engine.stream)
    return Job(lambda: engine.run_device(resident), DeviceEventTimer(engine))
