"""A worker process: it opens one model file and segments the images that it receives.

Images are decoded here and not in the server process, so that a damaged image, a full memory or an
error inside a backend can end a worker, but never the server.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any

import numpy as np

from eomt_deploy.errors import EomtDeployError
from eomt_deploy.pipeline import HostPipeline
from eomt_deploy.processing import Geometry
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.serving.formats import encode
from eomt_deploy.serving.work import Answer, Options, Pixels, RequestError, ServedModel, Work

Reply = Answer | RequestError
KEPT_BYTES = 512 << 20
"""Maximum memory of the outputs that are kept for repeated post-processing."""
GONE = "The outputs of this image are not kept."


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker opens its model file; see :class:`Segmenter`."""

    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    arithmetic: str | None = None
    max_pixels: int | None = None


def run_worker(path: str, options: WorkerOptions, connections: Sequence[Connection]) -> None:
    """The main function of a worker process.

    It reports a :class:`ServedModel`, or the error, on the first connection. Then it answers each
    list of :class:`Work` with a list of replies, each connection in a thread of its own: while the
    network runs for one, the images of another are decoded and its results are encoded. It ends
    when the server closes a connection, and also when the server is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    first = connections[0]
    try:
        segmenter = Segmenter(path, **asdict(options)).warmup()
    except EomtDeployError as error:
        first.send(error)
        return
    with segmenter:
        first.send(described(segmenter))
        kept = KeptOutputs(KEPT_BYTES)
        threads = [
            Thread(target=_answer_all, args=(segmenter, kept, connection), daemon=True)
            for connection in connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _answer_all(segmenter: Segmenter, kept: KeptOutputs, connection: Connection) -> None:
    while True:
        try:
            batch = connection.recv()
        except (EOFError, OSError):  # the server closed the connection
            return
        replies = answer_batch(segmenter, kept, batch)
        with suppress(OSError):
            connection.send(replies)


def described(segmenter: Segmenter) -> ServedModel:
    """What clients may know about the model."""
    spec = segmenter.spec
    known = segmenter.processor.thresholds()
    return ServedModel(
        task=spec.task,
        classes=tuple(
            {"id": c.id, "name": c.name, "thing": c.thing, "color": list(c.color)}
            for c in spec.classes
        ),
        thresholds={} if spec.task == "semantic" else asdict(known),
        image_size=spec.image_size,
        precision=spec.precision,
        where=segmenter.engine.where,
        remarks=segmenter.engine.remarks,
    )


class KeptOutputs:
    """The outputs of the network for some images, the least recently used are dropped first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[str, tuple[Any, Any, Geometry, Any]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def put(self, key: str, classes: Any, masks: Any, geometry: Geometry, pixels: Any) -> None:
        """Keep outputs; nothing happens if they are larger than the limit."""
        # Parts of a batch are views: they would keep the outputs of the complete batch.
        classes, masks = np.array(classes), np.array(masks)
        size = _bytes_of(classes, masks, pixels)
        if size > self._limit:
            return
        with self._lock:
            self._items[key] = (classes, masks, geometry, pixels)
            self._size += size
            while self._size > self._limit:
                _, (*arrays, _, old) = self._items.popitem(last=False)
                self._size -= _bytes_of(*arrays, old)

    def get(self, key: str) -> tuple[Any, Any, Geometry, Any]:
        """Kept outputs.

        Raises:
            RequestError: they were dropped, or never kept.
        """
        with self._lock:
            if key not in self._items:
                raise RequestError(404, GONE, fix="Send the image again.")
            self._items.move_to_end(key)
            return self._items[key]


def _bytes_of(*arrays: Any) -> int:
    return sum(array.nbytes for array in arrays)


def answer_batch(segmenter: Segmenter, kept: KeptOutputs, batch: Sequence[Work]) -> list[Reply]:
    """Segment a batch of images; an image that cannot be read gets an error, the others a result.

    Args:
        segmenter: the open model.
        kept: where outputs are kept for :attr:`Work.key`.
        batch: the images; a host engine runs the network on all of them together.
    """
    items = [_Item(segmenter, work) for work in batch]
    with _timed() as took:
        fresh = [item for item in items if item.prepare(kept)]
    for item in items:
        item.seconds["read"] = took()
    with _timed() as took:
        _run_network(segmenter, fresh)
    for item in fresh:
        item.seconds["network"] = took()
        item.batch = len(fresh)
    return [item.finish(kept) for item in items]


def _run_network(segmenter: Segmenter, items: Sequence[_Item]) -> None:
    """Set the outputs of each item."""
    if not items:
        return
    steps = items[0].steps
    if not isinstance(steps, HostPipeline):
        for item in items:  # thresholds are applied on the GPU, and each image has its own
            item.attempt(item.run_alone)
        return

    def run_together() -> None:
        outputs = steps.run([item.ready for item in items])
        for item, output in zip(items, outputs, strict=True):
            item.output = output

    if not items[0].attempt(run_together):
        for item in items:
            item.error = items[0].error


class _Item:
    """One image of a batch on its way."""

    def __init__(self, segmenter: Segmenter, work: Work) -> None:
        self.work = work
        self.seconds: dict[str, float] = {}
        self.batch = 1
        self.steps: Any = None
        self.ready: Any = None
        self.output: Any = None
        self.error: RequestError | None = None
        self._segmenter = segmenter
        self._kept: tuple[Any, Any, Geometry, Any] | None = None

    def attempt(self, step: Callable[[], None]) -> bool:
        """Run a step and keep its error as the reply."""
        if self.error is None:
            try:
                step()
            except RequestError as error:
                self.error = error
            except EomtDeployError as error:
                self.error = RequestError.from_error(error)
            except MemoryError:
                self.error = RequestError(
                    507, "There is not enough memory for this image.", fix="Send a smaller image."
                )
            except Exception:  # a fault in our code or in a library must not stop the worker
                traceback.print_exc()
                self.error = RequestError(
                    500,
                    "The server failed at this image; its log has the details.",
                    fix="Report this with the image and the log.",
                )
        return self.error is None

    def prepare(self, kept: KeptOutputs) -> bool:
        """Read and resize the image; False if the network does not need to run."""
        return self.attempt(lambda: self._prepare(kept)) and self._kept is None

    def _prepare(self, kept: KeptOutputs) -> None:
        work = self.work
        self.steps = self._segmenter.pipeline(**_named(work.options))
        if work.image is None:
            self._kept = kept.get(work.key or "")
            return
        image: Any = work.image
        if isinstance(image, Pixels):
            flat = np.frombuffer(image.data, np.uint8)
            image = flat.reshape(image.height, image.width, 3)
        (self.ready,) = self.steps.prepare([image])

    def run_alone(self) -> None:
        (self.output,) = self.steps.run([self.ready])

    def finish(self, kept: KeptOutputs) -> Reply:
        """Post-process and encode."""
        self.attempt(lambda: self._finish(kept))
        return self.error or self._answer

    def _finish(self, kept: KeptOutputs) -> None:
        work = self.work
        with _timed() as took:
            if work.key is None:
                (result,) = self.steps.finish([self.output])
            else:
                result = self._finish_kept(kept, work.key)
        self.seconds["postprocess"] = took()
        with _timed() as took:
            content, media_type = encode(result, work.options)
        self.seconds["encode"] = took()
        self._answer = Answer(content, media_type, self.seconds, self.batch)

    def _finish_kept(self, kept: KeptOutputs, key: str) -> Any:
        """Post-process on the CPU, which gives the same result as on the GPU."""
        segmenter = self._segmenter
        if self._kept is None:
            output = self.output
            if not hasattr(output, "class_logits"):  # the GPU has returned only the result
                pixels = output.image
                classes, masks, geometry = segmenter.logits(pixels)
            else:
                pixels = output.image.pixels
                classes, masks, geometry = output[1:]
            self._kept = (classes, masks, geometry, pixels)
            kept.put(key, *self._kept)
        classes, masks, geometry, pixels = self._kept
        result = segmenter.processor.postprocess(
            classes, masks, geometry, **_named(self.work.options)
        )
        return replace(result, image=pixels)


def _named(options: Options) -> Mapping[str, Any]:
    return {f"{name}_threshold": value for name, value in options.thresholds.items()}


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """The seconds that a block took, from a function that is called after it."""
    began = time.perf_counter()
    ended: list[float] = []
    try:
        yield lambda: ended[0] - began
    finally:
        ended.append(time.perf_counter())
