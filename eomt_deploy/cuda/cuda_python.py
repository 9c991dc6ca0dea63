"""The device layer on cuda-python; it uses the driver API, so that any driver version works."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from eomt_deploy.cuda.device import Array, Device
from eomt_deploy.errors import DeviceError

PINNED_FOR_ALL_CONTEXTS = 1  # CU_MEMHOSTALLOC_PORTABLE, a macro that the bindings do not define


def call(function: Callable[..., tuple[Any, ...]], *arguments: object) -> Any:
    """Call a function of the driver.

    Returns:
        the result, or a tuple of several results.

    Raises:
        DeviceError: the call failed; the message has CUDA's error name and description.
    """
    code, *results = function(*arguments)
    if code != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(code)
        _, words = driver.cuGetErrorString(code)
        raise DeviceError(
            f"CUDA failed in {function.__name__}: {name.decode() if name else code}.",
            why=words.decode() if words else "",
            fix="Check the GPU with nvidia-smi, and repeat the command in a new process. "
            "`eomt-deploy doctor` shows what can run.",
        )
    return results[0] if len(results) == 1 else tuple(results)


def _text(buffer: bytes) -> str:
    """Decode the zero-terminated text that the driver wrote to a buffer."""
    return buffer.split(b"\0", 1)[0].decode()


class CudaPythonDevice(Device):
    """One GPU through ``cuda.bindings.driver``; see :class:`Device`."""

    binding = "cuda-python"

    def __init__(self, index: int) -> None:
        call(driver.cuInit, 0)
        self.index = index
        self._device = call(driver.cuDeviceGet, index)
        self.name = _text(call(driver.cuDeviceGetName, 256, self._device))
        attribute = driver.CUdevice_attribute
        self.compute_capability = (
            call(
                driver.cuDeviceGetAttribute,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                self._device,
            ),
            call(
                driver.cuDeviceGetAttribute,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                self._device,
            ),
        )
        # Never released: torch, CuPy and TensorRT may still use objects of this context.
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._device)

    def _is_current(self) -> bool:
        return int(call(driver.cuCtxGetCurrent)) == int(self._context)

    @contextmanager
    def active(self) -> Iterator[None]:
        if self._is_current():
            yield
            return
        call(driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            call(driver.cuCtxPopCurrent)

    def alloc(self, size: int) -> int:
        return int(call(driver.cuMemAlloc, size))

    def free(self, pointer: int) -> None:
        call(driver.cuMemFree, pointer)

    def gpu_of(self, pointer: int) -> int | None:
        ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        try:
            number = int(call(driver.cuPointerGetAttribute, ordinal, pointer))
        except DeviceError:
            return None
        return number if number >= 0 else None

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        pointer = int(call(driver.cuMemHostAlloc, size, PINNED_FOR_ALL_CONTEXTS))
        memory: Any = (ctypes.c_byte * size).from_address(pointer)
        # numpy keeps `memory` alive as the base of the array and of all its views. At process exit
        # the driver has already freed everything, so no finalizer may call it.
        weakref.finalize(memory, self._free_pinned, pointer).atexit = False
        array: Array = np.ndarray(tuple(shape), np.dtype(dtype), memory)
        return array

    def _free_pinned(self, pointer: int) -> None:
        with self.active():
            call(driver.cuMemFreeHost, pointer)

    def to_device(self, pointer: int, source: Array, stream: int) -> None:
        call(driver.cuMemcpyHtoDAsync, pointer, source.ctypes.data, source.nbytes, stream)

    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        call(driver.cuMemcpyDtoHAsync, target.ctypes.data, pointer, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        call(driver.cuMemcpyDtoDAsync, target, source, size, stream)

    def fill_zero(self, pointer: int, size: int, stream: int) -> None:
        call(driver.cuMemsetD8Async, pointer, 0, size, stream)

    def stream(self) -> int:
        return int(call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def destroy_stream(self, stream: int) -> None:
        call(driver.cuStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        call(driver.cuStreamSynchronize, stream)

    def event(self, *, timing: bool = False) -> int:
        flags = driver.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return int(call(driver.cuEventCreate, kind.value))

    def destroy_event(self, event: int) -> None:
        call(driver.cuEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        call(driver.cuEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        call(driver.cuStreamWaitEvent, stream, event, 0)

    def wait_event(self, event: int) -> None:
        call(driver.cuEventSynchronize, event)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(call(driver.cuEventElapsedTime, start, end))

    def load(self, binary: bytes) -> int:
        return int(call(driver.cuModuleLoadData, binary))

    def function(self, module: int, name: str) -> int:
        return int(call(driver.cuModuleGetFunction, module, name.encode()))

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: int,
    ) -> None:
        # The driver expects an array of pointers to the values, and copies them during the call.
        values = [np.array(argument) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        call(driver.cuLaunchKernel, function, *grid, *block, 0, stream, pointers.ctypes.data, 0)

    def begin_capture(self, stream: int) -> None:
        # Thread-local mode allows allocations in other threads, e.g. by TensorRT and torch.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = call(driver.cuStreamEndCapture, stream)
        try:
            return int(call(driver.cuGraphInstantiate, graph, 0))
        finally:
            call(driver.cuGraphDestroy, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        call(driver.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        call(driver.cuGraphExecDestroy, graph)

    def memory(self) -> tuple[int, int]:
        free, total = call(driver.cuMemGetInfo)
        return int(free), int(total)
