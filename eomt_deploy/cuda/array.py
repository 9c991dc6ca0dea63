"""Arrays in GPU memory, shared with other libraries by ``__cuda_array_interface__`` and DLPack."""

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
    """GPU memory that is freed exactly once: by :meth:`free`, or with its last reference."""

    def __init__(self, device: Device, size: int) -> None:
        with device.active():
            self.pointer = device.alloc(max(size, 1))
        self.size = size
        self._free = weakref.finalize(self, _free, device, self.pointer)
        self._free.atexit = False  # at exit the driver has already freed everything

    def free(self) -> None:
        """Free the memory now. A second call has no effect."""
        self._free()


def _free(device: Device, pointer: int) -> None:
    with device.active():
        device.free(pointer)


class OwnedStream(int):
    """Handle of a new stream, which is destroyed with the last reference to this object.

    It is an integer like all handles, but an array that is written on the stream keeps it alive.
    """

    _device: Device

    def __new__(cls, device: Device) -> OwnedStream:
        with device.active():
            stream = super().__new__(cls, device.stream())
        stream._device = device
        return stream

    def __del__(self) -> None:
        if sys.is_finalizing():  # the driver is already shut down
            return
        with self._device.active():
            self._device.destroy_stream(self)


class DeviceArray:
    """A C-contiguous array in GPU memory.

    Attributes:
        device: the GPU.
        pointer: address of its first element.
        shape: shape of the array.
        dtype: numpy dtype (for bfloat16 the one of ``ml_dtypes``).
        stream: CUDA stream that writes it, which readers must wait for; None if it is complete.
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
        """Allocate an uninitialised array; its memory is freed with the last array that uses it.

        Raises:
            DeviceError: the GPU's memory is full.
        """
        memory = DeviceMemory(device, math.prod(shape) * np.dtype(dtype).itemsize)
        return cls(device, memory.pointer, shape, dtype, owner=memory)

    @classmethod
    def wrap(
        cls, array: Any, device: Device | None = None, *, reader: int | None = None
    ) -> DeviceArray:
        """Use the array of another library without copying it.

        Args:
            array: any object with ``__cuda_array_interface__`` (torch, CuPy, Numba, PyCUDA, JAX),
                in the memory of ``device``.
            device: the GPU; None uses the first one.
            reader: stream that will read the array. If the other library has ``__dlpack__``, the
                reader waits for the library's current stream in this thread: torch does not report
                this stream in ``__cuda_array_interface__``.

        Raises:
            UsageError: the object is not a GPU array, is on another GPU, is not C-contiguous, is
                masked, or has a type that numpy does not support.
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
        """Read ``__cuda_array_interface__`` (versions 2 and 3)."""
        try:
            facts = array.__cuda_array_interface__
        except (AttributeError, TypeError, RuntimeError) as error:  # torch raises for a CPU tensor
            raise UsageError(
                f"The {type(array).__name__} object is not an array in GPU memory.",
                why=str(error),
                fix="Pass an object with __cuda_array_interface__, or a numpy array to run().",
            ) from error
        shape = tuple(int(size) for size in facts["shape"])
        dtype = np.dtype(facts["typestr"])
        strides = facts.get("strides")
        if facts.get("mask") is not None:
            raise UsageError("The GPU array is masked.", fix="Pass it without a mask.")
        if strides is not None and not _is_contiguous(shape, strides, dtype.itemsize):
            raise UsageError(
                f"The GPU array {list(shape)} is not C-contiguous: strides {list(strides)}.",
                fix="Copy it first, e.g. with .contiguous() or cupy.ascontiguousarray().",
            )
        # Before version 3 the interface had no stream, so assume the legacy default stream.
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
        """Copy the array to a numpy array and wait until the copy is complete.

        Args:
            stream: CUDA stream for the copy; None uses the array's stream, or without one the
                default stream.
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
        """Make all later work on ``stream`` wait for the stream that writes this array."""
        if self.stream is not None:
            self._order(self.stream, stream)

    def release(self, stream: int) -> None:
        """Make later work on the stream that writes this array wait for ``stream``."""
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
        """Create a capsule for ``from_dlpack``; the reader's stream waits for ours.

        Raises:
            BufferError: a copy or another device was requested.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("A DeviceArray can be shared only on its own GPU and without a copy.")
        if stream != -1:  # -1: the reader handles the synchronisation
            with self.device.active():
                self.make_wait(LEGACY_STREAM if stream in (None, 0) else stream)
        return dlpack.capsule(self.pointer, self.shape, self.dtype, self, self.__dlpack_device__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.index


def _check_gpu(found: int | None, device: Device) -> None:
    if found not in (None, device.index):
        raise UsageError(
            f"The array must be on GPU {device.index}, but it is on GPU {found}.",
            fix=f"Copy it first, e.g. with .to('cuda:{device.index}').",
        )


def _let_wait(reader: int, array: Any) -> None:
    """Make the stream ``reader`` wait for the current stream of the array's library."""
    try:
        array.__dlpack__(stream=int(reader))  # torch does not accept a subclass of int
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"The {type(array).__name__} object cannot be shared.",
            why=str(error),
            fix="Copy it first, e.g. with .detach().clone().",
        ) from error


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array with these strides (in bytes) is C-contiguous.

    Strides of axes with one element, and of empty arrays, do not matter.
    """
    if math.prod(shape) == 0:
        return True
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
