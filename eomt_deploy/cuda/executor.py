"""One thread's way to the GPU and back: buffers, copies, streams and the CUDA graph.

Knows CUDA, but no library that runs networks: that is the :class:`Network` it is given. A batch
that is larger than the network's largest goes through in parts; while one part is computed, the
next is copied in and the one before is copied out.

The network stays bound to one set of buffers, so a CUDA graph depends on the batch alone. Images
that are in GPU memory are copied into it (microseconds), unless they were written there: see
:meth:`ThreadExecutor.input`. Buffers grow to the largest batch that was seen, and are reused.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray, OwnedStream
from eomt_deploy.cuda.device import Array, Device
from eomt_deploy.errors import DeviceError, UsageError


@dataclass(frozen=True)
class Tensor:
    """An input or output: ``shape`` is that of one item of the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def bytes(self, batch: int) -> int:
        return batch * math.prod(self.shape) * self.dtype.itemsize


class Network(Protocol):
    """What a library must do for an executor. All raise DeviceError."""

    def bind(self, name: str, pointer: int) -> None:
        """Read or write this tensor there, from now on."""

    def reshape(self, batch: int) -> None:
        """Take this batch from now on."""

    def enqueue(self, stream: int) -> None:
        """Give one run to the stream."""


@dataclass(frozen=True)
class Part:
    """Images ``start`` to ``stop`` of a batch, run as ``batch``, which may be more."""

    start: int
    stop: int
    batch: int


def split(count: int, least: int, largest: int) -> list[Part]:
    """Parts of a batch that the network takes, in order.

    They are of one size, the last filled up: a part of another size would cost a new CUDA graph in
    every call.
    """
    size = math.ceil(count / math.ceil(count / largest))
    return [
        Part(start, min(start + size, count), max(size, least)) for start in range(0, count, size)
    ]


class Step(enum.Enum):
    """How a batch is run."""

    RESHAPE = "reshape"  # another batch: plain run, which also warms up
    RUN = "run"
    CAPTURE = "capture"  # the same batch again: record it, and run the recording
    REPLAY = "replay"


def next_step(batch: int, shape: int | None, *, captured: bool, capture: bool) -> Step:
    """What to do with a batch.

    Args:
        shape: batch of the run before.
        captured: there is a graph of it.
        capture: graphs are wanted, and have not failed.
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
        network: the library's part; nobody else may use it.
        images: the input.
        outputs: the outputs, in the order in which they are returned.
        batch: (least, largest) that the network takes.
        graphs: record CUDA graphs, and say so in ``cuda_graph``.

    Attributes:
        cuda_graph: ``"on"``, ``"on from the second call"`` or ``"off: why"``.
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
        self._least, self._largest = batch
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
        """CUDA stream of the network; outputs that somebody holds keep it."""
        return self._streams[0]

    def _buffers(self, batch: int, tensors: Sequence[Tensor]) -> list[DeviceArray]:
        return [DeviceArray.empty(self.device, (batch, *t.shape), t.dtype) for t in tensors]

    def _reserve(self, batch: int) -> None:
        """Bind buffers that this batch fits in."""
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
        # A part that is filled up leaves rows as they are: let them be defined.
        self.device.fill_zero(arrays[0].pointer, arrays[0].nbytes, self.stream)
        for tensor, array in zip(tensors, arrays, strict=True):
            self._network.bind(tensor.name, array.pointer)
        self._bound = arrays

    @property
    def bytes(self) -> int:
        """GPU memory of the buffers."""
        return sum(array.nbytes for array in (*self._bound, *self._staged, *self._joined))

    def input(self, batch: int) -> DeviceArray:
        """The network's own input buffer, uint8 [batch, ...]: what is written there, on
        :attr:`stream`, and given to :meth:`run_device` is not copied.

        Raises:
            UsageError: the batch is larger than the network's largest.
        """
        if not 1 <= batch <= self._largest:
            raise UsageError(f"The largest batch of this engine is {self._largest}, not {batch}.")
        with self.device.active():
            self._reserve(max(batch, self._least))
        return self._view(self._bound[0], batch)

    def run(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """Host memory to host memory: outputs as float32, owned by the caller."""
        with self.device.active():
            parts = split(len(images), self._least, self._largest)
            self._reserve(parts[0].batch)
            if not self._pinned or len(self._pinned[0]) < parts[0].stop:
                self._pinned = []
                self._pinned = [
                    self.device.pinned((parts[0].stop, *tensor.shape), tensor.dtype)
                    for tensor in (self._images, *self._outputs)
                ]
            results = [np.empty((len(images), *t.shape), np.float32) for t in self._outputs]
            if len(parts) == 1:
                self._run_whole(images, parts[0], results)
            else:
                self._run_parts(images, parts, results)
        return results

    def _run_whole(self, images: Array, part: Part, results: Sequence[Array]) -> None:
        source, count = self._pinned[0][: part.stop], part.stop
        source[...] = images
        self.device.to_device(self._bound[0].pointer, source, self.stream)
        self._step(part.batch)
        for array, pinned in zip(self._bound[1:], self._pinned[1:], strict=True):
            self.device.to_host(pinned[:count], array.pointer, self.stream)
        self.device.synchronize(self.stream)
        self._collect(part, results)

    def _run_parts(self, images: Array, parts: Sequence[Part], results: Sequence[Array]) -> None:
        """While the GPU computes a part, the next goes in and the one before comes out."""
        if not self._staged:
            self._staged = self._buffers(self._largest, (self._images, *self._outputs))
        device, (_, inwards, outwards) = self.device, self._streams
        arrived, taken, done, left = self._events

        def send(part: Part) -> None:
            if part.start:
                device.wait_event(arrived)  # the pinned images of the part before are copied
                device.wait(inwards, taken)  # and so are its staged ones
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
                device.wait_event(left)  # so the staged outputs are free, too
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
        """Pinned outputs of a part, as float32, to where they belong."""
        for pinned, result in zip(self._pinned[1:], results, strict=True):
            result[part.start : part.stop] = pinned[: part.stop - part.start]

    def run_device(self, images: DeviceArray) -> list[DeviceArray]:
        """GPU memory to GPU memory, without waiting: outputs of the network's own types, written
        by :attr:`stream`, and overwritten by the next call."""
        with self.device.active():
            parts = split(len(images), self._least, self._largest)
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
                    images.release(self.stream)  # its memory may be used again
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
        """Run what is in the input buffer."""
        if self._network is None:
            return  # _reserve has refused it
        step = next_step(batch, self._shape, captured=self._graph is not None, capture=self._graphs)
        if step is Step.RESHAPE:
            self._drop_graph()
            self._shape = None  # until it has run: what failed has not warmed up
            self._network.reshape(batch)
        if step is Step.CAPTURE:
            self._capture(self._network)
        if self._graph is not None:
            self.device.launch_graph(self._graph, self.stream)
        else:
            self._network.enqueue(self.stream)
        self._shape = batch

    def _capture(self, network: Network) -> None:
        """Record one run. Where that fails, plain launches go on, and ``cuda_graph`` says why."""
        failure = ""
        graph = None
        try:
            self.device.begin_capture(self.stream)
            try:
                network.enqueue(self.stream)
            except DeviceError as error:
                failure = error.what
            except BaseException:  # as Ctrl-C: a stream that goes on recording is of no use
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
        """Free everything but outputs that somebody still holds. Closing twice is fine."""
        if self._network is None:
            return
        with self.device.active():
            for stream in self._streams:
                self.device.synchronize(stream)
            self._drop_graph()
            self._network = None  # before the buffers that it is bound to
            for event in self._events:
                self.device.destroy_event(event)
        self._streams = []
        self._bound, self._staged, self._joined, self._pinned = [], [], [], []

    def __del__(self) -> None:
        """A thread has ended, and its executor with it."""
        if hasattr(self, "_streams") and not sys.is_finalizing():
            self.close()
