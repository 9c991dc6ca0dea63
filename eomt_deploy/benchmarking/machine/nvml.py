"""State of an NVIDIA GPU, read with nvidia-ml-py.

This module only makes the calls; :mod:`eomt_deploy.benchmarking.machine.state` interprets them.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from typing import Any

from eomt_deploy.benchmarking.machine.state import GpuSample
from eomt_deploy.closing import Closing

_WINDOWS = os.name == "nt"


class Nvml(Closing):
    """The first GPU that this process may use; a value that the driver lacks is None."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        try:
            self._device = _first_device(pynvml)
        except pynvml.NVMLError:
            pynvml.nvmlShutdown()
        else:
            self._nvml = pynvml

    @property
    def available(self) -> bool:
        return self._nvml is not None

    def sample(self) -> GpuSample | None:
        """Current clocks, power, temperature and throttle reasons."""
        nvml = self._nvml
        if nvml is None:
            return None
        return GpuSample(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            power_w=_watts(self._ask("nvmlDeviceGetPowerUsage")),
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            reasons=self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        )

    def facts(self) -> dict[str, float | None]:
        """Constant properties: maximum clocks in MHz and power limit in watts."""
        nvml = self._nvml
        if nvml is None:
            return {}
        return {
            "max_sm_mhz": self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            "max_memory_mhz": self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
            "power_limit_w": _watts(self._ask("nvmlDeviceGetEnforcedPowerLimit")),
        }

    def utilization(self) -> float | None:
        """Share of NVML's last sample period in which the GPU was busy, 0 to 1."""
        rates = None if self._nvml is None else self._ask("nvmlDeviceGetUtilizationRates")
        return None if rates is None else float(rates.gpu) / 100

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _ask(self, function: str, *arguments: int) -> Any:
        """Result of an NVML function; None if the driver lacks or refuses it."""
        try:
            return getattr(self._nvml, function)(self._device, *arguments)
        except self._nvml.NVMLError:
            return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _first_device(nvml: Any) -> Any:
    """The device by its UUID, because CUDA_VISIBLE_DEVICES does not hide GPUs from NVML."""
    name = _visible_uuid()
    if name is not None:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:  # e.g. a part of a GPU (MIG)
            pass
    return nvml.nvmlDeviceGetHandleByIndex(0)


def _visible_uuid() -> bytes | None:
    """UUID ``GPU-…`` of CUDA's device 0, which is not always NVML's device 0."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if _WINDOWS else "libcuda.so.1")
    except OSError:
        return None
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetUuid(ctypes.byref(raw), device):
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(raw))}".encode()
