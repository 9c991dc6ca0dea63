"""GPU memory, copies, streams, events, kernels and CUDA graphs, without any framework."""

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
"""Environment variable that selects the binding."""

BINDINGS = {
    "cuda-python": (
        "eomt_deploy.cuda.cuda_python:CudaPythonDevice",
        "pip install 'cuda-python>=12.6'",
    ),
    "pycuda": (
        "eomt_deploy.cuda.pycuda:PyCudaDevice",
        "pip install 'eomt-deploy[pycuda]'  (this compiles PyCUDA and needs the CUDA headers)",
    ),
}

_devices: dict[tuple[str, int], Device] = {}
_lock = Lock()


def choose_binding(requested: str | None = None) -> str:
    """Select the CUDA binding: the requested one, else ``EOMT_DEPLOY_CUDA``, else cuda-python.

    Raises:
        UsageError: the binding is unknown.
    """
    name = requested or os.environ.get(VARIABLE) or "cuda-python"
    if name not in BINDINGS:
        origin = "" if requested else f" (from the environment variable {VARIABLE})"
        raise UsageError(
            f"There is no CUDA binding {name!r}{origin}.", fix=f"Known: {', '.join(BINDINGS)}."
        )
    return name


def open_device(index: int = 0, binding: str | None = None) -> Device:
    """Open a GPU. All callers get the same object, because they share its primary context.

    Args:
        index: number of the GPU, in the driver's order.
        binding: ``"cuda-python"`` or ``"pycuda"``; None uses :func:`choose_binding`.

    Raises:
        UsageError: the binding is unknown.
        DeviceError: there is no GPU with this number, or CUDA cannot be initialised.
        MissingDependencyError: the binding is not installed.
    """
    name = choose_binding(binding)
    # Check this first: without a driver some libraries crash instead of raising an error.
    count = cuda_device_count()
    if count == 0:
        raise DeviceError(
            "This machine has no NVIDIA GPU.",
            why="The NVIDIA driver is missing, or reports no GPU.",
            fix="Use a machine with a GPU, or run the .onnx file on the CPU.",
        )
    if not 0 <= index < count:
        raise DeviceError(
            f"There is no GPU {index}: the number of GPUs is {count}.",
            why="The environment variable CUDA_VISIBLE_DEVICES may hide GPUs.",
            fix=f"Use {'GPU 0' if count == 1 else f'a GPU from 0 to {count - 1}'}.",
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
