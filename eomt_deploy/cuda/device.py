"""What we ask of a CUDA binding: memory, copies, streams, events, kernels, graphs.

Handles (pointers, streams, events, functions, graphs) are plain integers, so that any library that
speaks CUDA can share them. Everything lives in the primary context of one GPU.
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
"""CUDA's handle of the stream that everybody uses who names none (torch, CuPy, Numba)."""


class Device(ABC):
    """One GPU through one Python binding.

    Every method raises :class:`eomt_deploy.errors.DeviceError` with CUDA's own name for what
    went wrong. Sizes are bytes. All but :meth:`active` and :meth:`activate` want the primary
    context to be current.

    Attributes:
        binding: ``"cuda-python"`` or ``"pycuda"``.
        index: number of the GPU, in the driver's order.
        name: what the GPU calls itself.
        compute_capability: (major, minor).
    """

    binding: str
    index: int
    name: str
    compute_capability: tuple[int, int]

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Primary context current inside ``with``, and the caller's own again after it."""

    @abstractmethod
    def alloc(self, size: int) -> int: ...

    @abstractmethod
    def free(self, pointer: int) -> None: ...

    @abstractmethod
    def gpu_of(self, pointer: int) -> int | None:
        """Number of the GPU whose memory this is; None where CUDA does not say."""

    @abstractmethod
    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Page-locked host memory, freed with the array."""

    @abstractmethod
    def to_device(self, pointer: int, source: Array, stream: int) -> None:
        """Copy a contiguous host array; asynchronous when it is pinned."""

    @abstractmethod
    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        """Copy into a contiguous host array; asynchronous when it is pinned."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""

    @abstractmethod
    def fill_zero(self, pointer: int, size: int, stream: int) -> None: ...

    @abstractmethod
    def stream(self) -> int:
        """A new non-blocking stream."""

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
        """Work given to ``stream`` from now on waits for ``event``."""

    @abstractmethod
    def wait_event(self, event: int) -> None:
        """Block the calling thread until ``event`` has happened."""

    @abstractmethod
    def elapsed_ms(self, start: int, end: int) -> float: ...

    @abstractmethod
    def load(self, binary: bytes) -> int:
        """Load a cubin; returns the module."""

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
        """Start a kernel; arguments are numpy scalars (pointers are ``np.uint64``)."""

    @abstractmethod
    def begin_capture(self, stream: int) -> None:
        """Record what this thread gives to ``stream`` instead of running it."""

    @abstractmethod
    def end_capture(self, stream: int) -> int:
        """An executable graph of what was given to ``stream`` since :meth:`begin_capture`."""

    @abstractmethod
    def launch_graph(self, graph: int, stream: int) -> None: ...

    @abstractmethod
    def destroy_graph(self, graph: int) -> None: ...

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
