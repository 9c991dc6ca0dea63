"""A simulated GPU in host memory, to test the order of operations and the lifetime of memory.

Its streams run as late and as interleaved as CUDA allows: only events and synchronisation define an
order. Memory is checked on every access, and overwritten when it is freed.
"""

from __future__ import annotations

import ctypes
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from eomt_deploy.cuda.device import LEGACY_STREAM, Array, Device
from eomt_deploy.errors import DeviceError


@dataclass
class Work:
    run: Callable[[], None]
    ready: Callable[[], bool] = lambda: True
    launched: Callable[[], None] = lambda: None


@dataclass
class Event:
    recorded: int = 0
    reached: int = 0


class SimulatedGpu(Device):
    """Host memory with the device interface; ``seed`` selects one of the possible orders."""

    binding = "simulated"
    index = 0
    name = "Simulated GPU"
    compute_capability = (8, 9)

    def __init__(self, seed: int = 0, *, graphs: bool = True) -> None:
        self._random = random.Random(seed)
        self._numbers = count(1000)
        self._memory: dict[int, Any] = {}
        self._freed: list[Any] = []
        self._queues: dict[int, deque[Work]] = defaultdict(deque)
        self._captures: dict[int, list[Work]] = {}
        self.streams: set[int] = {LEGACY_STREAM}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.graphs_work = graphs
        self.elsewhere: dict[int, int | None] = {}
        self.allocations = 0
        self.captured = 0
        self.launches = 0
        self.depth = 0

    @property
    def live(self) -> set[int]:
        """Addresses of the allocated buffers."""
        return set(self._memory)

    @contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def view(self, pointer: int, size: int) -> Array:
        """A view of allocated memory; any other address fails the test."""
        for start, buffer in self._memory.items():
            if start <= pointer and pointer + size <= start + len(buffer):
                return np.frombuffer(buffer, np.uint8, size, pointer - start)
        raise AssertionError(f"access to {size} bytes at {pointer:#x}, which are not allocated")

    def submit(self, stream: int, work: Work) -> None:
        assert self.depth, "the context is not current"
        assert stream in self.streams
        if stream in self._captures:
            self._captures[stream].append(work)
            return
        self._queue(stream).append(work)
        for _ in range(self._random.randrange(3)):
            self._advance()

    def _queue(self, stream: int) -> deque[Work]:
        return self._queues[int(stream)]  # int: a driver does not keep a stream object alive

    def _advance(self) -> bool:
        """Run one operation that may run now; return whether there was one."""
        ready = [s for s, queue in self._queues.items() if queue and queue[0].ready()]
        if not ready:
            return False
        self._run_next(self._random.choice(ready))
        return True

    def _run_next(self, stream: int) -> None:
        queue = self._queues[stream]
        if queue:  # else the garbage collector just freed memory, which waits for all work
            queue.popleft().run()

    def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert self._advance() or reached(), "deadlock"

    def alloc(self, size: int) -> int:
        assert self.depth, "the context is not current"
        buffer = (ctypes.c_ubyte * size)(*([0xCD] * min(size, 64)))
        self.allocations += 1
        self._memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, pointer: int) -> None:
        assert self.depth, "the context is not current"
        self._until(lambda: not any(self._queues.values()))  # cuMemFree waits for the GPU
        buffer = self._memory.pop(pointer)  # KeyError: freed twice
        ctypes.memset(buffer, 0xDD, len(buffer))
        self._freed.append(buffer)

    def gpu_of(self, pointer: int) -> int | None:
        return self.elsewhere.get(pointer, self.index)

    def pinned(self, shape: Sequence[int], dtype: Any) -> Array:
        self.allocations += 1
        return np.zeros(tuple(shape), dtype)

    def to_device(self, pointer: int, source: Array, stream: int) -> None:
        assert source.flags.c_contiguous
        target = self.view(pointer, source.nbytes)
        self.submit(stream, Work(lambda: _assign(target, source)))

    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        assert target.flags.c_contiguous
        source = self.view(pointer, target.nbytes)
        flat = target.reshape(-1).view(np.uint8)
        self.submit(stream, Work(lambda: _assign(flat, source)))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        to, of = self.view(target, size), self.view(source, size)
        self.submit(stream, Work(lambda: _assign(to, of)))

    def fill_zero(self, pointer: int, size: int, stream: int) -> None:
        target = self.view(pointer, size)
        self.submit(stream, Work(lambda: target.fill(0)))

    def stream(self) -> int:
        self.streams.add(number := next(self._numbers))
        return number

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams
        self._until(lambda: not self._queue(stream))

    def event(self, *, timing: bool = False) -> int:
        self.events[number := next(self._numbers)] = Event()
        return number

    def destroy_event(self, event: int) -> None:
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        known = self.events[event]
        known.recorded += 1
        number = known.recorded
        self.submit(stream, Work(lambda: setattr(known, "reached", max(known.reached, number))))

    def wait(self, stream: int, event: int) -> None:
        known = self.events[event]
        number = known.recorded
        self.submit(stream, Work(lambda: None, ready=lambda: known.reached >= number))

    def wait_event(self, event: int) -> None:
        known = self.events[event]
        self._until(lambda: known.reached >= known.recorded)

    def elapsed_ms(self, start: int, end: int) -> float:
        raise NotImplementedError

    def load(self, binary: bytes) -> int:
        raise NotImplementedError

    def function(self, module: int, name: str) -> int:
        raise NotImplementedError

    def launch(self, function: int, grid: Any, block: Any, arguments: Any, stream: int) -> None:
        raise NotImplementedError

    def begin_capture(self, stream: int) -> None:
        if not self.graphs_work:
            raise DeviceError("CUDA failed in cuStreamBeginCapture: CUDA_ERROR_NOT_SUPPORTED.")
        self._captures[int(stream)] = []

    def end_capture(self, stream: int) -> int:
        self.graphs[number := next(self._numbers)] = self._captures.pop(stream)
        self.captured += 1
        return number

    def launch_graph(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self.graphs[graph]:
            work.launched()
            self.submit(stream, work)

    def destroy_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def memory(self) -> tuple[int, int]:
        used = sum(len(buffer) for buffer in self._memory.values())
        return (1 << 30) - used, 1 << 30


def _assign(target: Array, source: Array) -> None:
    target[...] = source.reshape(-1).view(np.uint8)
