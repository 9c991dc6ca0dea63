"""State of the machine during a measurement: throttling of the GPU, load of the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THROTTLE_REASONS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x020: "heat (software)",
    0x040: "heat (hardware)",
    0x080: "power brake",
}
"""NVML's bits for lowered clocks. Idle (0x1), clocks set by the user (0x2), synchronised boost
(0x10) and display clocks (0x100) do not count as throttling."""


@dataclass(frozen=True)
class GpuSample:
    """State of a GPU at one moment: MHz, watts, degrees Celsius, and NVML's throttle bits."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    reasons: int | None


@dataclass(frozen=True)
class GpuState:
    """Summary of GPU samples; None or empty if the driver does not provide a value.

    Attributes:
        samples: number of samples.
        sm_mhz, power_w, temperature_c: minimum and maximum.
        throttled: each throttle reason, with the share of samples that have it, 0 to 1.
    """

    samples: int = 0
    sm_mhz: tuple[int, int] | None = None
    power_w: tuple[float, float] | None = None
    temperature_c: tuple[int, int] | None = None
    throttled: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "sm_mhz": self.sm_mhz,
            "power_w": self.power_w,
            "temperature_c": self.temperature_c,
            "throttled": dict(self.throttled),
        }


def summarize(samples: Sequence[GpuSample]) -> GpuState:
    """Minimum and maximum of each value, and the share of each throttle reason."""
    known = [s.reasons for s in samples if s.reasons is not None]
    shares = {
        name: sum(bool(bits & mask) for bits in known) / len(known)
        for mask, name in THROTTLE_REASONS.items()
        if known
    }
    return GpuState(
        samples=len(samples),
        sm_mhz=_range([s.sm_mhz for s in samples]),
        power_w=_range([s.power_w for s in samples]),
        temperature_c=_range([s.temperature_c for s in samples]),
        throttled=tuple((name, share) for name, share in shares.items() if share),
    )


def _range(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


@dataclass(frozen=True)
class CpuTimes:
    """Seconds: elapsed, busy on our cores (all programs), busy (this process)."""

    wall: float
    busy: float
    own: float


def others_share(start: CpuTimes, end: CpuTimes, cores: int) -> float:
    """Share of the cores, 0 to 1, that other programs used between two samples."""
    wall = end.wall - start.wall
    if wall <= 0:
        return 0.0
    others = (end.busy - start.busy) - (end.own - start.own)
    return min(1.0, max(0.0, others / wall / cores))


def cpu_times() -> CpuTimes | None:
    """Current counters of the system; None if they are not available (not Linux)."""
    try:
        lines = Path("/proc/stat").read_text("ascii").splitlines()
        cores = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    busy = 0.0
    for line in lines:
        name, *numbers = line.split()
        if name in cores:
            user, nice, system, _idle, _wait, irq, soft, steal, *_ = map(int, numbers)
            busy += (user + nice + system + irq + soft + steal) / tick
    own = os.times()
    return CpuTimes(time.perf_counter(), busy, own.user + own.system)
