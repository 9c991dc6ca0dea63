"""Sampling of the machine during a measurement: other programs, clocks, temperatures."""

from __future__ import annotations

import time

from eomt_deploy.benchmarking.machine.nvml import Nvml
from eomt_deploy.benchmarking.machine.state import (
    GpuSample,
    GpuState,
    cpu_times,
    others_share,
    summarize,
)
from eomt_deploy.closing import Closing
from eomt_deploy.devices import usable_cores

SAMPLE_SECONDS = 0.05
"""Minimum interval between two samples of the GPU, because each one takes time."""


def gpu_load() -> float | None:
    """Share of the last sample period in which the GPU was busy, 0 to 1; None if unknown."""
    with Nvml() as nvml:
        return nvml.utilization()


class Watch(Closing):
    """Sampler of the machine's state, to be called between rounds.

    Args:
        device: device to watch, ``cpu`` or ``cuda``.
        busy: load of the GPU before the measurement, see :func:`gpu_load`.
    """

    def __init__(self, device: str, busy: float | None = None) -> None:
        self._gpu = device.startswith("cuda")
        self._busy = busy
        self._nvml = Nvml() if self._gpu else None
        self._samples: list[GpuSample] = []
        self._next = 0.0
        self._start = cpu_times()

    def __call__(self) -> None:
        if self._nvml is None or time.perf_counter() < self._next:
            return
        sample = self._nvml.sample()
        if sample is not None:
            self._samples.append(sample)
        self._next = time.perf_counter() + SAMPLE_SECONDS

    @property
    def others(self) -> float | None:
        """Share of the machine that other programs use, 0 to 1; None if unknown.

        On a CPU: since the start; on a GPU: ``busy``.
        """
        if self._gpu:
            return self._busy
        end = cpu_times()
        return others_share(self._start, end, usable_cores()) if self._start and end else None

    @property
    def gpu(self) -> GpuState | None:
        """State of the GPU since the start; None without samples."""
        return summarize(self._samples) if self._samples else None

    def limits(self) -> dict[str, float | None]:
        """Maximum clocks of the GPU in MHz and its power limit in watts."""
        return self._nvml.facts() if self._nvml else {}

    def close(self) -> None:
        """Stop watching."""
        if self._nvml is not None:
            self._nvml.close()
