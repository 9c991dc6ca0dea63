"""Named buffers that grow and are reused, so that allocations stop after the largest sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray, DeviceMemory
from eomt_deploy.cuda.device import Array, Device

KEPT_TABLES = 16
"""Images often have one of a few sizes."""
ALIGNMENT = 16
"""Of the arrays in a bundle, in bytes."""


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
        self._tables: dict[str, dict[Hashable, list[DeviceArray]]] = {}
        self._slots: dict[tuple[str, Hashable], int] = {}

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
        """Constant arrays on the GPU. The last :data:`KEPT_TABLES` keys of each name are kept.

        Args:
            key: value that identifies the content.
            make: function that returns the arrays.
        """
        known = self._tables.setdefault(name, {})
        if key in known:
            return known[key]
        made = make()  # may raise an error: nothing has changed yet
        if len(known) == KEPT_TABLES:  # the new arrays replace the oldest ones
            oldest = next(iter(known))
            del known[oldest], self._slots[name, oldest]
        taken = {self._slots[name, other] for other in known}
        number = min(set(range(KEPT_TABLES)) - taken)
        arrays, sources = [], []
        for index, values in enumerate(made):
            array = self.array(f"{name}/{number}/{index}", values.shape, values.dtype)
            source = np.ascontiguousarray(values)
            self._device.to_device(array.pointer, source, self._stream)
            sources.append(source)
            arrays.append(array)
        self._device.synchronize(self._stream)  # the sources are freed when this function returns
        known[key], self._slots[name, key] = arrays, number
        return arrays

    def bundle(self, name: str, **fields: tuple[tuple[int, ...], npt.DTypeLike]) -> Bundle:
        """Small arrays of the given shapes and types, filled with zero bytes."""
        return Bundle(self, name, fields)

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
        self._slots.clear()


class Bundle:
    """Small arrays in one buffer, which are filled with zero bytes and fetched together."""

    def __init__(
        self, scratch: Scratch, name: str, fields: dict[str, tuple[tuple[int, ...], npt.DTypeLike]]
    ) -> None:
        self._scratch, self._name = scratch, name
        self._fields: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        size = 0
        for field, (shape, kind) in fields.items():
            dtype = np.dtype(kind)
            self._fields[field] = size, shape, dtype
            size += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._array = scratch.zeros(name, (size,), np.uint8)

    def pointer(self, field: str) -> int:
        """Address of an array in GPU memory."""
        return self._array.pointer + self._fields[field][0]

    def fetch(self) -> dict[str, Array]:
        """Copies of all arrays in pinned memory; as :meth:`Scratch.fetch`."""
        content = self._scratch.fetch(self._name, self._array)
        return {
            field: content[start : start + math.prod(shape) * dtype.itemsize]
            .view(dtype)
            .reshape(shape)
            for field, (start, shape, dtype) in self._fields.items()
        }
