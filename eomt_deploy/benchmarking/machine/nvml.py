"""The state of an NVIDIA GPU, asked of the library that comes with its driver. Calls only.

By ctypes, so that nothing needs to be installed. What the numbers mean is decided in
:mod:`eomt_deploy.benchmarking.machine.state`.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from types import TracebackType
from typing import Any

from eomt_deploy.benchmarking.machine.state import GpuSample

# Numbers of the NVML API (nvml.h).
TEMPERATURE_GPU = 0
CLOCK_SM = 1
CLOCK_MEMORY = 2
_WINDOWS = os.name == "nt"


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The first GPU that this process may use; every answer is None where it is refused."""

    def __init__(self) -> None:
        self._library: Any = None
        self._device = ctypes.c_void_p()
        try:
            library = ctypes.CDLL("nvml.dll" if _WINDOWS else "libnvidia-ml.so.1")
        except OSError:
            return
        if library.nvmlInit_v2():
            return
        # By its own number: CUDA_VISIBLE_DEVICES hides GPUs from CUDA, not from NVML.
        name = _visible_uuid()
        found = name is not None and not library.nvmlDeviceGetHandleByUUID(
            name, ctypes.byref(self._device)
        )
        if found or not library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
            self._library = library

    @property
    def available(self) -> bool:
        return self._library is not None

    def sample(self) -> GpuSample | None:
        """Clocks, power, temperature and what holds the clocks down, at this moment."""
        if self._library is None:
            return None
        milliwatts = self._number("nvmlDeviceGetPowerUsage")
        reasons = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        return GpuSample(
            sm_mhz=self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, CLOCK_SM),
            memory_mhz=self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, CLOCK_MEMORY),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._number("nvmlDeviceGetTemperature", ctypes.c_uint, TEMPERATURE_GPU),
            reasons=reasons,
        )

    def facts(self) -> dict[str, float | None]:
        """What does not change: highest clocks and the power limit."""
        if self._library is None:
            return {}
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "max_sm_mhz": self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, CLOCK_SM),
            "max_memory_mhz": self._number(
                "nvmlDeviceGetMaxClockInfo", ctypes.c_uint, CLOCK_MEMORY
            ),
            "power_limit_w": None if limit is None else limit / 1000,
        }

    def utilization(self) -> float | None:
        """Share of the last moments in which the GPU was busy, 0 to 1."""
        if self._library is None:
            return None
        value = _Utilization()
        if self._library.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(value)):
            return None
        return float(value.gpu) / 100

    def close(self) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()
            self._library = None

    def __enter__(self) -> Nvml:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _number(self, name: str, kind: Any = ctypes.c_uint, *arguments: int) -> int | None:
        function = getattr(self._library, name, None)  # old drivers lack some
        value = kind()
        if function is None or function(self._device, *arguments, ctypes.byref(value)):
            return None
        return int(value.value)


def _visible_uuid() -> bytes | None:
    """``GPU-…`` of CUDA's device 0, which is not always NVML's."""
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
