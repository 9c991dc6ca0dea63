"""Interface of a CUDA binding: memory, copies, streams, events, kernels, CUDA graphs.

Handles (pointers, streams, events, functions, graphs) are plain integers, so that they can be
shared with any CUDA library. Everything belongs to the primary context of one GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LEGACY_STREAM = 1
"""CUDA's handle of the legacy default stream, which torch, CuPy and Numba use by default."""


class Device(ABC):
    """One GPU through one Python binding.

    If CUDA fails, every method raises :class:`eomt_deploy.errors.DeviceError` with CUDA's error
    name. Sizes are in bytes. All methods except :meth:`active` require that the primary context is
    current.

    Attributes:
        binding: ``"cuda-python"`` or ``"pycuda"``.
        index: number of the GPU, in the driver's order.
        name: name of the GPU.
        compute_capability: (major, minor).
    """

    binding: str
    index: int
    name: str
    compute_capability: tuple[int, int]

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Make the primary context current inside ``with``, then restore the caller's context."""

    @abstractmethod
    def alloc(self, size: int) -> int: ...

    @abstractmethod
    def free(self, pointer: int) -> None: ...

    @abstractmethod
    def gpu_of(self, pointer: int) -> int | None:
        """Number of the GPU that this memory belongs to; None if CUDA does not know it."""

    @abstractmethod
    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Allocate pinned host memory, which is freed with the array."""

    @abstractmethod
    def to_device(self, pointer: int, source: Array, stream: int) -> None:
        """Copy a contiguous host array to the GPU; asynchronous if the array is pinned."""

    @abstractmethod
    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        """Copy from the GPU to a contiguous host array; asynchronous if the array is pinned."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within GPU memory."""

    @abstractmethod
    def fill_zero(self, pointer: int, size: int, stream: int) -> None: ...

    @abstractmethod
    def stream(self) -> int:
        """Create a non-blocking stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None: ...

    @abstractmethod
    def synchronize(self, stream: int) -> None: ...

    @abstractmethod
    def event(self, *, timing: bool = False) -> int: ...

    @abstractmethod
    def destroy_event(self, event: int) -> None: ...

    @abstractmethod
    def record(self, event: int, stream: int) -> None: ...

    @abstractmethod
    def wait(self, stream: int, event: int) -> None:
        """Make all later work on ``stream`` wait for ``event``."""

    @abstractmethod
    def wait_event(self, event: int) -> None:
        """Block the calling thread until ``event`` has completed."""

    @abstractmethod
    def elapsed_ms(self, start: int, end: int) -> float: ...

    @abstractmethod
    def load(self, binary: bytes) -> int:
        """Load a cubin and return the module."""

    @abstractmethod
    def function(self, module: int, name: str) -> int: ...

    @abstractmethod
    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: int,
    ) -> None:
        """Launch a kernel; arguments are numpy scalars (``np.uint64`` for pointers)."""

    @abstractmethod
    def begin_capture(self, stream: int) -> None:
        """Record the work that this thread submits to ``stream`` instead of running it."""

    @abstractmethod
    def end_capture(self, stream: int) -> int:
        """Return an executable graph of the work recorded since :meth:`begin_capture`."""

    @abstractmethod
    def launch_graph(self, graph: int, stream: int) -> None: ...

    @abstractmethod
    def destroy_graph(self, graph: int) -> None: ...

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) memory of the GPU."""
