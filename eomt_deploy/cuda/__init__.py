"""GPU memory, copies, streams, events, kernels and graphs, without any framework."""

from __future__ import annotations

import os
from importlib import import_module
from threading import Lock

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Device
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, MissingDependencyError, UsageError

__all__ = ["BINDINGS", "VARIABLE", "Device", "DeviceArray", "choose_binding", "open_device"]

VARIABLE = "EOMT_DEPLOY_CUDA"
"""Environment variable that names the binding."""

BINDINGS = {
    "cuda-python": (
        "eomt_deploy.cuda.cuda_python:CudaPythonDevice",
        "pip install 'cuda-python>=12.6'",
    ),
    "pycuda": (
        "eomt_deploy.cuda.pycuda:PyCudaDevice",
        "pip install 'eomt-deploy[pycuda]'  (it is compiled, and needs the CUDA headers)",
    ),
}

_devices: dict[tuple[str, int], Device] = {}
_lock = Lock()


def choose_binding(asked: str | None = None) -> str:
    """The CUDA binding: the one asked for, else that of ``EOMT_DEPLOY_CUDA``, else cuda-python.

    Raises:
        UsageError: there is no such binding.
    """
    name = asked or os.environ.get(VARIABLE) or "cuda-python"
    if name not in BINDINGS:
        origin = "" if asked else f" (from the environment variable {VARIABLE})"
        raise UsageError(
            f"There is no CUDA binding {name!r}{origin}.", fix=f"Known: {', '.join(BINDINGS)}."
        )
    return name


def open_device(index: int = 0, binding: str | None = None) -> Device:
    """One GPU; the same object for all who ask, since all share its primary context.

    Args:
        index: number of the GPU, in the driver's order.
        binding: ``"cuda-python"`` or ``"pycuda"``; None leaves it to :func:`choose_binding`.

    Raises:
        UsageError: there is no such binding.
        DeviceError: there is no such GPU, or CUDA does not start.
        MissingDependencyError: the binding is not installed.
    """
    name = choose_binding(binding)
    # First of all: some libraries crash instead of failing where there is no driver.
    count = cuda_device_count()
    if count == 0:
        raise DeviceError(
            "There is no NVIDIA GPU here.",
            why="The NVIDIA driver is missing, or reports no GPU.",
            fix="Run on a machine with a GPU, or run the .onnx file on the CPU.",
        )
    if not 0 <= index < count:
        raise DeviceError(
            f"There is no GPU {index}: the driver reports {count}.",
            fix=f"Use 0 to {count - 1}; CUDA_VISIBLE_DEVICES hides GPUs.",
        )
    with _lock:
        if (name, index) not in _devices:
            _devices[name, index] = _open(name, index)
        return _devices[name, index]


def _open(name: str, index: int) -> Device:
    target, install = BINDINGS[name]
    module, class_name = target.split(":")
    try:
        kind = getattr(import_module(module), class_name)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"The CUDA binding {name} cannot be imported.", why=str(error), fix=install
        ) from error
    device: Device = kind(index)
    return device
