"""The device layer on PyCUDA (https://documen.tician.de/pycuda), for programs that use PyCUDA.

The program must share the primary context: ``import pycuda.autoprimaryctx``, not ``autoinit``,
whose separate context cannot access memory of the primary context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pycuda.driver as drv

from eomt_deploy.cuda.device import LEGACY_STREAM, Array, Device
from eomt_deploy.errors import DeviceError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which PyCUDA does not define


@contextmanager
def _errors() -> Iterator[None]:
    """Convert PyCUDA's errors, whose text contains CUDA's message, to DeviceError."""
    try:
        yield
    except drv.Error as error:
        raise DeviceError(
            f"CUDA failed: {error}.",
            fix="Check the GPU with nvidia-smi, and repeat the command in a new process. "
            "`eomt-deploy doctor` shows what can run.",
        ) from error


class PyCudaDevice(Device):
    """One GPU through ``pycuda.driver``; see :class:`Device`.

    Streams and memory are CUDA's own handles. Handles of events, modules and functions are valid
    only in this object. PyCUDA has no CUDA graphs: capturing raises DeviceError.
    """

    binding = "pycuda"

    def __init__(self, index: int) -> None:
        self._numbers = count(1)
        self._objects: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}
        self.index = index
        with _errors():
            drv.init()
            device = drv.Device(index)
            self.name = device.name()
            self.compute_capability = device.compute_capability()
            self._context = device.retain_primary_context()

    def _is_current(self) -> bool:
        # PyCUDA compares handles, so another object of the same context is equal.
        current = drv.Context.get_current()
        return current is not None and bool(current == self._context)

    @contextmanager
    def active(self) -> Iterator[None]:
        with _errors():
            current = self._is_current()
            if not current:
                self._context.push()
        try:
            yield
        finally:
            if not current:
                with _errors():
                    drv.Context.pop()

    def _keep(self, thing: object) -> int:
        number = next(self._numbers)
        self._objects[number] = thing
        return number

    def _stream(self, stream: int) -> Any:
        """PyCUDA's object of a stream; None for the legacy stream."""
        if stream in (0, LEGACY_STREAM):
            return None
        try:
            return self._streams[stream]
        except KeyError:
            raise DeviceError(
                f"PyCUDA cannot use the stream {stream:#x}.",
                why="The stream was created by another library.",
                fix="Use the default stream, or use cuda-python: unset EOMT_DEPLOY_CUDA.",
            ) from None

    def alloc(self, size: int) -> int:
        with _errors():
            memory = drv.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        with _errors():
            self._memory.pop(pointer).free()

    def gpu_of(self, pointer: int) -> int | None:
        return None  # PyCUDA cannot query it

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        with _errors():
            array: Array = drv.pagelocked_empty(tuple(shape), np.dtype(dtype))
        return array

    def to_device(self, pointer: int, source: Array, stream: int) -> None:
        with _errors():
            drv.memcpy_htod_async(pointer, source, self._stream(stream))

    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        with _errors():
            drv.memcpy_dtoh_async(target, pointer, self._stream(stream))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        with _errors():
            drv.memcpy_dtod_async(target, source, size, self._stream(stream))

    def fill_zero(self, pointer: int, size: int, stream: int) -> None:
        with _errors():
            drv.memset_d8_async(pointer, 0, size, self._stream(stream))

    def stream(self) -> int:
        with _errors():
            stream = drv.Stream(NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        known = self._stream(stream)
        with _errors():
            if known is None:
                drv.Context.synchronize()
            else:
                known.synchronize()

    def event(self, *, timing: bool = False) -> int:
        flags = drv.event_flags
        with _errors():
            return self._keep(drv.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING))

    def destroy_event(self, event: int) -> None:
        del self._objects[event]

    def record(self, event: int, stream: int) -> None:
        with _errors():
            self._objects[event].record(self._stream(stream))

    def wait(self, stream: int, event: int) -> None:
        known = self._stream(stream)
        with _errors():
            if known is None:
                # PyCUDA has no object for the legacy stream, so block instead.
                self._objects[event].synchronize()
            else:
                known.wait_for_event(self._objects[event])

    def wait_event(self, event: int) -> None:
        with _errors():
            self._objects[event].synchronize()

    def elapsed_ms(self, start: int, end: int) -> float:
        with _errors():
            return float(self._objects[start].time_till(self._objects[end]))

    def load(self, binary: bytes) -> int:
        with _errors():
            return self._keep(drv.module_from_buffer(binary))

    def function(self, module: int, name: str) -> int:
        with _errors():
            return self._keep(self._objects[module].get_function(name))

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: int,
    ) -> None:
        with _errors():
            self._objects[function](*arguments, grid=grid, block=block, stream=self._stream(stream))

    def begin_capture(self, stream: int) -> None:
        raise DeviceError(
            "PyCUDA does not support CUDA graphs.", fix="Use cuda-python: unset EOMT_DEPLOY_CUDA."
        )

    def end_capture(self, stream: int) -> int:
        raise DeviceError(
            "PyCUDA does not support CUDA graphs.",
            fix="Install cuda-python, which is used if it is installed: pip install cuda-python",
        )

    def launch_graph(self, graph: int, stream: int) -> None:
        raise DeviceError(
            "PyCUDA does not support CUDA graphs.",
            fix="Install cuda-python, which is used if it is installed: pip install cuda-python",
        )

    def destroy_graph(self, graph: int) -> None:
        raise DeviceError(
            "PyCUDA does not support CUDA graphs.",
            fix="Install cuda-python, which is used if it is installed: pip install cuda-python",
        )

    def memory(self) -> tuple[int, int]:
        with _errors():
            free, total = drv.mem_get_info()
        return int(free), int(total)
