"""Arrays in GPU memory, shared with any library by ``__cuda_array_interface__`` and DLPack."""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda import dlpack
from eomt_deploy.cuda.device import LEGACY_STREAM, Array, Device
from eomt_deploy.errors import UsageError


class DeviceMemory:
    """GPU memory that is freed exactly once: by :meth:`free`, or with its last user."""

    def __init__(self, device: Device, size: int) -> None:
        with device.active():
            self.pointer = device.alloc(max(size, 1))
        self.size = size
        self._free = weakref.finalize(self, _free, device, self.pointer)
        self._free.atexit = False  # the driver is gone by then, and has freed everything

    def free(self) -> None:
        """Free it now; a second time does nothing."""
        self._free()


def _free(device: Device, pointer: int) -> None:
    with device.active():
        device.free(pointer)


class OwnedStream(int):
    """Handle of a new stream, which is destroyed with the last that holds it.

    A number, as all handles are; but an array that it writes keeps it alive.
    """

    _device: Device

    def __new__(cls, device: Device) -> OwnedStream:
        with device.active():
            stream = super().__new__(cls, device.stream())
        stream._device = device
        return stream

    def __del__(self) -> None:
        if sys.is_finalizing():  # the driver is gone by then, too
            return
        with self._device.active():
            self._device.destroy_stream(self)


class DeviceArray:
    """A C-contiguous array in GPU memory.

    Attributes:
        device: the GPU.
        pointer: address of its first element.
        shape: sizes.
        dtype: numpy dtype (bfloat16 is that of ``ml_dtypes``).
        stream: CUDA stream that writes it, which a reader must wait for; None when it is ready.
        owner: object that keeps the memory alive.
    """

    def __init__(
        self,
        device: Device,
        pointer: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        owner: object = None,
        stream: int | None = None,
    ) -> None:
        self.device = device
        self.pointer = pointer
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.owner = owner
        self.stream = stream

    @classmethod
    def empty(cls, device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """New memory, not initialised, freed with the last array that uses it.

        Raises:
            DeviceError: the GPU's memory is full.
        """
        memory = DeviceMemory(device, math.prod(shape) * np.dtype(dtype).itemsize)
        return cls(device, memory.pointer, shape, dtype, owner=memory)

    @classmethod
    def wrap(
        cls, array: Any, device: Device | None = None, *, reader: int | None = None
    ) -> DeviceArray:
        """The array of another library, without a copy.

        Args:
            array: anything with ``__cuda_array_interface__`` (torch, CuPy, Numba, PyCUDA, JAX),
                in the memory of ``device``.
            device: the GPU; None takes the first.
            reader: stream that will read it. A library with ``__dlpack__`` lets it wait for the
                stream that this thread uses there, which torch does not name elsewhere.

        Raises:
            UsageError: no such array, on another GPU, not C-contiguous, masked, or of a type that
                numpy lacks.
        """
        if device is None:
            if isinstance(array, DeviceArray):
                return array
            from eomt_deploy.cuda import open_device

            device = open_device()
        if isinstance(array, DeviceArray):
            _check_gpu(array.device.index, device)
            return array
        wrapped = cls._of_interface(array, device)
        with device.active():
            _check_gpu(device.gpu_of(wrapped.pointer), device)
            if reader is not None and hasattr(array, "__dlpack__"):
                _let_wait(reader, array)
        return wrapped

    @classmethod
    def _of_interface(cls, array: Any, device: Device) -> DeviceArray:
        """What ``__cuda_array_interface__`` (versions 2 and 3) says."""
        try:
            facts = array.__cuda_array_interface__
        except (AttributeError, TypeError, RuntimeError) as error:  # torch raises for a CPU tensor
            raise UsageError(
                f"A {type(array).__name__} is no array in GPU memory.",
                why=str(error),
                fix="Pass something with __cuda_array_interface__, or a numpy array to run().",
            ) from error
        shape = tuple(int(size) for size in facts["shape"])
        dtype = np.dtype(facts["typestr"])
        strides = facts.get("strides")
        if facts.get("mask") is not None:
            raise UsageError("The GPU array is masked.", fix="Pass it without a mask.")
        if strides is not None and not _is_contiguous(shape, strides, dtype.itemsize):
            raise UsageError(
                f"The GPU array {list(shape)} is not C-contiguous: strides {list(strides)}.",
                fix="Copy it first, as with .contiguous() or cupy.ascontiguousarray().",
            )
        # Before version 3 nobody said which stream is still writing: the one that all share.
        stream = facts.get("stream") if facts["version"] >= 3 else LEGACY_STREAM
        return cls(device, facts["data"][0] or 0, shape, dtype, owner=array, stream=stream)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on GPU {self.device.index})"

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Rows ``start`` to ``stop`` of the first axis, in the same memory."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(
            self.device,
            self.pointer + start * row,
            (stop - start, *self.shape[1:]),
            self.dtype,
            owner=self.owner,
            stream=self.stream,
        )

    def copy_to_host(self, stream: int | None = None) -> Array:
        """A numpy copy, complete on return.

        Args:
            stream: CUDA stream that copies; None takes the array's own, else the default stream.
        """
        target = np.empty(self.shape, self.dtype)
        with self.device.active():
            through = next((s for s in (stream, self.stream) if s is not None), LEGACY_STREAM)
            if self.stream is not None and self.stream != through:
                self.make_wait(through)
            if target.nbytes:
                self.device.to_host(target, self.pointer, through)
            self.device.synchronize(through)
        return target

    def make_wait(self, stream: int) -> None:
        """Let the work given to ``stream`` from now on wait for what writes this array."""
        if self.stream is not None:
            self._order(self.stream, stream)

    def release(self, stream: int) -> None:
        """Let what writes this array from now on wait for the work given to ``stream``."""
        if self.stream is not None:
            self._order(stream, self.stream)

    def _order(self, first: int, then: int) -> None:
        if first == then:
            return
        event = self.device.event()
        try:
            self.device.record(event, first)
            self.device.wait(then, event)
        finally:
            self.device.destroy_event(event)  # CUDA keeps it until the wait is over

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3: the reader waits for ``stream``."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": None if self.stream is None else int(self.stream),
        }

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for ``from_dlpack``; the reader's stream waits for ours.

        Raises:
            BufferError: a copy or another device is wanted.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("A DeviceArray is shared as it is, not copied.")
        if stream != -1:  # -1: the reader takes care itself
            with self.device.active():
                self.make_wait(LEGACY_STREAM if stream in (None, 0) else stream)
        return dlpack.capsule(self.pointer, self.shape, self.dtype, self, self.__dlpack_device__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.index


def _check_gpu(found: int | None, device: Device) -> None:
    if found not in (None, device.index):
        raise UsageError(
            f"The array is in the memory of GPU {found}, it is wanted on GPU {device.index}.",
            fix=f"Copy it there first, as with .to('cuda:{device.index}').",
        )


def _let_wait(reader: int, array: Any) -> None:
    """Let the stream ``reader`` wait for all that the array's library was given."""
    try:
        array.__dlpack__(stream=int(reader))  # torch takes no subclass of int
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"A {type(array).__name__} cannot be shared.",
            why=str(error),
            fix="Copy it into an array of its own first, as with .detach().clone().",
        ) from error


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Strides in bytes; those of axes with one element, or of an empty array, say nothing."""
    if math.prod(shape) == 0:
        return True
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
