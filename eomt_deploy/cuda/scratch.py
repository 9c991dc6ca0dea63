"""Named buffers that grow and are reused, so that allocations stop after the largest sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray, DeviceMemory
from eomt_deploy.cuda.device import Array, Device


class Scratch:
    """Named buffers in GPU memory and pinned memory, used on one stream.

    The primary context must be current. A buffer keeps its content until it is requested again.

    Args:
        device: the GPU.
        stream: CUDA stream of all copies; other work on the buffers must be ordered with it.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._memory: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, Array] = {}
        self._tables: dict[str, tuple[Hashable, list[DeviceArray]]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Uninitialised GPU memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = DeviceMemory(self._device, size)
            if name in self._memory:
                # Kernels may still use the old memory, which the assignment below may free.
                self._device.synchronize(self._stream)
            self._memory[name] = memory
        return DeviceArray(
            self._device, memory.pointer, shape, dtype, owner=memory, stream=self._stream
        )

    def pinned(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Uninitialised pinned host memory; copies that use the same name must have finished."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._pinned or self._pinned[name].nbytes < size:
            self._pinned[name] = self._device.pinned((size,), np.uint8)
        return self._pinned[name][:size].view(dtype).reshape(shape)

    def zeros(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """GPU memory filled with zero bytes."""
        array = self.array(name, shape, dtype)
        self._device.fill_zero(array.pointer, array.nbytes, self._stream)
        return array

    def upload(self, name: str, values: Array) -> DeviceArray:
        """Copy ``values`` to the GPU; an earlier upload with the same name must have finished."""
        staging = self.pinned(name, values.shape, values.dtype)
        np.copyto(staging, values)
        array = self.array(name, values.shape, values.dtype)
        self._device.to_device(array.pointer, staging, self._stream)
        return array

    def tables(
        self, name: str, key: Hashable, make: Callable[[], Sequence[Array]]
    ) -> list[DeviceArray]:
        """Small arrays on the GPU, created again only if ``key`` has changed.

        Args:
            key: value that identifies the content.
            make: function that returns the arrays.
        """
        known = self._tables.get(name)
        if known is not None and known[0] == key:
            return known[1]
        arrays, sources = [], []
        for index, values in enumerate(make()):
            array = self.array(f"{name}/{index}", values.shape, values.dtype)
            source = np.ascontiguousarray(values)
            self._device.to_device(array.pointer, source, self._stream)
            sources.append(source)
            arrays.append(array)
        self._device.synchronize(self._stream)  # the sources are freed when this function returns
        self._tables[name] = key, arrays
        return arrays

    def fetch(self, name: str, source: DeviceArray) -> Array:
        """Copy ``source`` to pinned memory; complete only after the stream is synchronised."""
        source.make_wait(self._stream)
        target = self.pinned(name, source.shape, source.dtype)
        self._device.to_host(target, source.pointer, self._stream)
        return target

    def free(self) -> None:
        """Release all buffers after synchronising the stream; arrays still in use stay valid."""
        self._device.synchronize(self._stream)
        self._memory.clear()
        self._pinned.clear()
        self._tables.clear()
