"""Runs a network on the GPU for one thread: buffers, copies, streams and the CUDA graph.

It uses CUDA only; the library that runs the network is behind the :class:`Network` protocol. A
batch above the network's maximum is run in parts: while one part is computed, the next one is
copied to the GPU and the previous one is copied back.

The network stays bound to one set of buffers, so a CUDA graph depends only on the batch size.
Images in GPU memory are copied to the input buffer (microseconds), unless they were written there
directly: see :meth:`ThreadExecutor.input`. Buffers grow to the largest batch so far, and are
reused.
"""

from __future__ import annotations

import enum
import math
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray, OwnedStream
from eomt_deploy.cuda.device import Array, Device
from eomt_deploy.errors import DeviceError, UsageError

CAPTURING = threading.RLock()
"""Held while a graph is recorded. Meanwhile, no other thread may wait for the complete GPU, as some
libraries do when they open a model."""


@dataclass(frozen=True)
class Tensor:
    """An input or output; ``shape`` is the shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def bytes(self, batch: int) -> int:
        return batch * math.prod(self.shape) * self.dtype.itemsize


class Network(Protocol):
    """Network of a library that an executor runs. All methods raise DeviceError on failure."""

    def bind(self, name: str, pointer: int) -> None:
        """Set the address of a tensor for all later runs."""

    def reshape(self, batch: int) -> None:
        """Set the batch size for all later runs."""

    def enqueue(self, stream: int, *, recorded: bool) -> None:
        """Enqueue one run on the stream; ``recorded``: as a part of a CUDA graph."""

    def close(self) -> None:
        """Free what runs have allocated. No graph of the network exists any more."""


@dataclass(frozen=True)
class Part:
    """Images ``start`` to ``stop`` of a batch, run with the batch size ``batch``, which may be
    larger than their number."""

    start: int
    stop: int
    batch: int


def split(count: int, minimum: int, largest: int) -> list[Part]:
    """Split a batch into parts that the network accepts.

    All parts run with the same batch size, the last one padded: another size would need a new CUDA
    graph in every call.

    Args:
        count: number of images.
        minimum: minimum batch size of the network.
        largest: maximum batch size of the network.
    """
    size = math.ceil(count / math.ceil(count / largest))
    return [
        Part(start, min(start + size, count), max(size, minimum)) for start in range(0, count, size)
    ]


class Step(enum.Enum):
    """How a batch is run."""

    RESHAPE = "reshape"  # new batch size: run without a graph, which is also the warm-up
    RUN = "run"  # run without a graph
    CAPTURE = "capture"  # same batch size again: record a graph and launch it
    REPLAY = "replay"  # launch the graph again


def next_step(batch: int, shape: int | None, *, captured: bool, capture: bool) -> Step:
    """Decide how to run a batch.

    Args:
        batch: batch size.
        shape: batch size of the previous run; None if there is none.
        captured: whether there is a CUDA graph for ``shape``.
        capture: whether CUDA graphs are enabled and have not failed.
    """
    if batch != shape:
        return Step.RESHAPE
    if captured:
        return Step.REPLAY
    return Step.CAPTURE if capture else Step.RUN


class ThreadExecutor:
    """Runs batches of images through a network, for one thread.

    Args:
        device: the GPU.
        network: the network; only this executor may use it.
        images: the input.
        outputs: the outputs, in the order in which they are returned.
        batch: (minimum, maximum) batch size of the network.
        graphs: use CUDA graphs.

    Attributes:
        cuda_graph: ``"on"``, ``"on from the second call"``, ``"off"`` or ``"off: reason"``.
    """

    def __init__(
        self,
        device: Device,
        network: Network,
        images: Tensor,
        outputs: Sequence[Tensor],
        batch: tuple[int, int],
        *,
        graphs: bool,
    ) -> None:
        self.device = device
        self._network: Network | None = network
        self._images, self._outputs = images, tuple(outputs)
        self._minimum, self._largest = batch
        self._shape: int | None = None
        self._graph: int | None = None
        self._graphs = graphs
        self.cuda_graph = "on from the second call" if graphs else "off"
        self._bound: list[DeviceArray] = []
        self._pinned: list[Array] = []  # for run()
        self._staged: list[DeviceArray] = []  # for run() in several parts
        self._joined: list[DeviceArray] = []  # for run_device() in several parts
        with device.active():
            self._events = [device.event() for _ in range(4)]
            self._streams = [OwnedStream(device) for _ in range(3)]

    @property
    def stream(self) -> OwnedStream:
        """CUDA stream of the network; outputs in use keep it alive."""
        return self._streams[0]

    def _buffers(self, batch: int, tensors: Sequence[Tensor]) -> list[DeviceArray]:
        return [DeviceArray.empty(self.device, (batch, *t.shape), t.dtype) for t in tensors]

    def _reserve(self, batch: int) -> None:
        """Bind buffers for at least this batch size."""
        if self._network is None:
            raise UsageError("This engine is closed.", fix="Open it again with open_engine().")
        if self._bound and len(self._bound[0]) >= batch:
            return
        self.device.synchronize(self.stream)
        self._drop_graph()
        self._shape = None
        self._bound = []
        tensors = (self._images, *self._outputs)
        arrays = self._buffers(batch, tensors)
        # A padded part does not write all rows, so initialise them.
        self.device.fill_zero(arrays[0].pointer, arrays[0].nbytes, self.stream)
        for tensor, array in zip(tensors, arrays, strict=True):
            self._network.bind(tensor.name, array.pointer)
        self._bound = arrays

    @property
    def bytes(self) -> int:
        """GPU memory of the buffers in bytes."""
        return sum(array.nbytes for array in (*self._bound, *self._staged, *self._joined))

    def input(self, batch: int) -> DeviceArray:
        """Input buffer of the network, uint8 [batch, ...].

        If images are written to it on :attr:`stream`, :meth:`run_device` does not copy them.

        Raises:
            UsageError: the batch is larger than the maximum of the network.
        """
        if not 1 <= batch <= self._largest:
            raise UsageError(
                f"The batch size must be 1 to {self._largest} for this engine, got {batch}.",
                fix="Use a batch in this range, or build the engine with a larger --batch.",
            )
        with self.device.active():
            self._reserve(max(batch, self._minimum))
        return self._view(self._bound[0], batch)

    def run(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """Run images in host memory; the outputs are float32, in host memory, owned by the
        caller."""
        with self.device.active():
            parts = split(len(images), self._minimum, self._largest)
            self._reserve(parts[0].batch)
            if not self._pinned or len(self._pinned[0]) < parts[0].stop:
                self._pinned = []
                self._pinned = [
                    self.device.pinned((parts[0].stop, *tensor.shape), tensor.dtype)
                    for tensor in (self._images, *self._outputs)
                ]
            results = [np.empty((len(images), *t.shape), np.float32) for t in self._outputs]
            if len(parts) == 1:
                self._run_single(images, parts[0], results)
            else:
                self._run_parts(images, parts, results)
        return results

    def _run_single(self, images: Array, part: Part, results: Sequence[Array]) -> None:
        source, count = self._pinned[0][: part.stop], part.stop
        source[...] = images
        self.device.to_device(self._bound[0].pointer, source, self.stream)
        self._step(part.batch)
        for array, pinned in zip(self._bound[1:], self._pinned[1:], strict=True):
            self.device.to_host(pinned[:count], array.pointer, self.stream)
        self.device.synchronize(self.stream)
        self._collect(part, results)

    def _run_parts(self, images: Array, parts: Sequence[Part], results: Sequence[Array]) -> None:
        """Run several parts; copies of the next and the previous part overlap the computation."""
        if not self._staged:
            self._staged = self._buffers(self._largest, (self._images, *self._outputs))
        device, (_, inwards, outwards) = self.device, self._streams
        arrived, taken, done, left = self._events

        def send(part: Part) -> None:
            if part.start:
                device.wait_event(arrived)  # the pinned images of the previous part are copied
                device.wait(inwards, taken)  # its staged images are copied, too
            source = self._pinned[0][: part.stop - part.start]
            source[...] = images[part.start : part.stop]
            device.to_device(self._staged[0].pointer, source, inwards)
            device.record(arrived, inwards)

        send(parts[0])
        for number, part in enumerate(parts):
            device.wait(self.stream, arrived)
            count = part.stop - part.start
            self._copy(self._bound[0], self._staged[0], self._images.bytes(count))
            device.record(taken, self.stream)
            self._step(part.batch)
            if number + 1 < len(parts):
                send(parts[number + 1])
            if number:
                device.wait_event(left)  # the staged outputs are free, too
                self._collect(parts[number - 1], results)
            for tensor, staged, bound in zip(
                self._outputs, self._staged[1:], self._bound[1:], strict=True
            ):
                self._copy(staged, bound, tensor.bytes(count))
            device.record(done, self.stream)
            device.wait(outwards, done)
            for pinned, staged in zip(self._pinned[1:], self._staged[1:], strict=True):
                device.to_host(pinned[:count], staged.pointer, outwards)
            device.record(left, outwards)
        device.wait_event(left)
        self._collect(parts[-1], results)

    def _collect(self, part: Part, results: Sequence[Array]) -> None:
        """Convert the pinned outputs of a part to float32 and write them to the results."""
        for pinned, result in zip(self._pinned[1:], results, strict=True):
            result[part.start : part.stop] = pinned[: part.stop - part.start]

    def run_device(self, images: DeviceArray) -> list[DeviceArray]:
        """Run images in GPU memory without waiting for the result.

        Returns:
            outputs in GPU memory with the network's types, written on :attr:`stream` and
            overwritten by the next call.
        """
        with self.device.active():
            parts = split(len(images), self._minimum, self._largest)
            self._reserve(parts[0].batch)
            if len(parts) > 1 and (not self._joined or len(self._joined[0]) < len(images)):
                self._joined = []
                self._joined = self._buffers(len(images), self._outputs)
            images.make_wait(self.stream)
            for part in parts:
                source = images.rows(part.start, part.stop)
                if source.pointer != self._bound[0].pointer:
                    self._copy(self._bound[0], source, source.nbytes)
                if part is parts[-1]:
                    images.release(self.stream)  # its memory may be reused
                self._step(part.batch)
                if len(parts) > 1:
                    for joined, bound in zip(self._joined, self._bound[1:], strict=True):
                        target = joined.rows(part.start, part.stop)
                        self._copy(target, bound, target.nbytes)
        outputs = self._joined if len(parts) > 1 else self._bound[1:]
        return [self._view(array, len(images)) for array in outputs]

    def _view(self, array: DeviceArray, count: int) -> DeviceArray:
        view = array.rows(0, count)
        view.stream = self.stream
        return view

    def _copy(self, target: DeviceArray, source: DeviceArray, size: int) -> None:
        self.device.copy(target.pointer, source.pointer, size, self.stream)

    def _step(self, batch: int) -> None:
        """Run the network on the input buffer."""
        if self._network is None:
            return  # unreachable: _reserve raises an error for a closed engine
        step = next_step(batch, self._shape, captured=self._graph is not None, capture=self._graphs)
        if step is Step.RESHAPE:
            self._drop_graph()
            self._shape = None  # until it has run: a failed run is not a warm-up
            self._network.reshape(batch)
        if step is Step.CAPTURE:
            self._capture(self._network)
        if self._graph is not None:
            self.device.launch_graph(self._graph, self.stream)
        else:
            self._network.enqueue(self.stream, recorded=False)
        self._shape = batch

    def _capture(self, network: Network) -> None:
        """Record one run. If this fails, runs continue without a graph, and ``cuda_graph`` has the
        reason."""
        failure = ""
        graph = None
        with CAPTURING:
            try:
                self.device.begin_capture(self.stream)
                try:
                    network.enqueue(self.stream, recorded=True)
                except DeviceError as error:
                    failure = error.what
                except BaseException:  # e.g. Ctrl-C: the stream must not stay in capture mode
                    with suppress(DeviceError):
                        self.device.destroy_graph(self.device.end_capture(self.stream))
                    raise
                graph = self.device.end_capture(self.stream)
            except DeviceError as error:
                failure = failure or error.what
        if failure:
            if graph is not None:
                self.device.destroy_graph(graph)
            self._graphs = False
            self.cuda_graph = f"off: {failure}"
        else:
            self._graph = graph
            self.cuda_graph = "on"

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.device.synchronize(self.stream)
            self.device.destroy_graph(self._graph)
            self._graph = None

    def close(self) -> None:
        """Free everything except outputs that are still referenced. A second call has no effect."""
        if self._network is None:
            return
        with self.device.active():
            for stream in self._streams:
                self.device.synchronize(stream)
            self._drop_graph()
            self._network.close()
            self._network = None  # released before the buffers that it is bound to
            for event in self._events:
                self.device.destroy_event(event)
        self._streams = []
        self._bound, self._staged, self._joined, self._pinned = [], [], [], []

    def __del__(self) -> None:
        """Close the executor when its thread has ended."""
        if hasattr(self, "_streams") and not sys.is_finalizing():
            self.close()
