"""Buffers by name that grow and stay: nothing is allocated once all sizes were seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray, DeviceMemory
from eomt_deploy.cuda.device import Array, Device


class Scratch:
    """GPU and page-locked buffers of one user, all of whose work goes to one stream.

    The primary context must be current. A buffer holds its content until it is asked for again.

    Args:
        device: the GPU.
        stream: CUDA stream of all copies; what uses the buffers must be ordered with it.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._memory: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, Array] = {}
        self._tables: dict[str, tuple[Hashable, list[DeviceArray]]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """GPU memory, not initialised."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = DeviceMemory(self._device, size)
            if name in self._memory:
                # Kernels may still work in the old one, which goes with its last user.
                self._device.synchronize(self._stream)
            self._memory[name] = memory
        return DeviceArray(
            self._device, memory.pointer, shape, dtype, owner=memory, stream=self._stream
        )

    def pinned(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Page-locked host memory, not initialised; no copy with it may be under way."""
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
        """A copy of ``values`` on the GPU; no earlier upload of that name may be under way."""
        staging = self.pinned(name, values.shape, values.dtype)
        np.copyto(staging, values)
        array = self.array(name, values.shape, values.dtype)
        self._device.to_device(array.pointer, staging, self._stream)
        return array

    def tables(
        self, name: str, key: Hashable, make: Callable[[], Sequence[Array]]
    ) -> list[DeviceArray]:
        """Small arrays on the GPU, made anew only when ``key`` changed."""
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
        self._device.synchronize(self._stream)  # the sources end with this call
        self._tables[name] = key, arrays
        return arrays

    def fetch(self, name: str, source: DeviceArray) -> Array:
        """A page-locked copy of ``source``, complete after the stream was synchronised."""
        source.make_wait(self._stream)
        target = self.pinned(name, source.shape, source.dtype)
        self._device.to_host(target, source.pointer, self._stream)
        return target

    def free(self) -> None:
        """Forget all buffers once the stream is done; arrays given out stay alive."""
        self._device.synchronize(self._stream)
        self._memory.clear()
        self._pinned.clear()
        self._tables.clear()
