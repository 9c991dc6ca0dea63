"""The hardware of this machine, detected without any framework."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ISA_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd",
    "sve",
)  # fmt: skip
"""Instruction sets that affect the speed of a network."""
EXACT_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""x86 CPUs without any of these accumulate INT8 products in 16 bits, which can overflow."""

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""x86 CPUs without any of these emulate BF16, which is slower than FP32."""

# CUdevice_attribute numbers of the CUDA driver API.
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


def is_x86() -> bool:
    """Whether this machine has an x86 processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def cuda_device_count() -> int:
    """Number of NVIDIA GPUs that the driver reports; 0 without a driver. Never raises."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def cuda_device_names() -> list[str]:
    """Names of the NVIDIA GPUs, in the driver's order."""
    names = []
    for index in range(cuda_device_count()):
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        device, buffer = ctypes.c_int(), ctypes.create_string_buffer(100)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(buffer, len(buffer), device)
        names.append(buffer.value.decode())
    return names


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: name of the GPU.
        compute_capability: e.g. ``8.9``.
        driver: version of the driver; None if it is not known.
    """

    name: str
    compute_capability: str
    driver: str | None


def current_gpu() -> Gpu | None:
    """The first NVIDIA GPU that this process may use, or None. Never raises."""
    if cuda_device_count() == 0:
        return None
    driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    numbers = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(str(value.value))
    return Gpu(cuda_device_names()[0], ".".join(numbers), _driver_version())


def _driver_version() -> str | None:
    """Version such as ``580.65.06``, from the management library (NVML) of the driver."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
    except OSError:
        return None
    buffer = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2():
        return None
    failed = nvml.nvmlSystemGetDriverVersion(buffer, len(buffer))
    nvml.nvmlShutdown()
    return None if failed else buffer.value.decode()


def cpu_name() -> str:
    """Model name of the processor."""
    for line in _cpuinfo():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The :data:`ISA_FLAGS` that the processor has (only on Linux; empty elsewhere)."""
    for line in _cpuinfo():
        if line.lower().startswith(("flags", "features")):
            present = set(line.split(":", 1)[1].split())
            return [flag for flag in ISA_FLAGS if flag in present]
    return []


def computes_in_bf16() -> bool:
    """Whether this CPU is known to have instructions for BF16 matrix products."""
    return not BF16_FLAGS.isdisjoint(cpu_flags())


def may_overflow_in_int8() -> bool:
    """Whether this CPU is known to accumulate INT8 products in only 16 bits."""
    flags = cpu_flags()
    return is_x86() and bool(flags) and EXACT_INT8_FLAGS.isdisjoint(flags)


def usable_cores() -> int:
    """Number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def package_version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
