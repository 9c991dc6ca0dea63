"""The requests for one model: its queue, its workers, and reloading."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from eomt_deploy.errors import EomtDeployError
from eomt_deploy.serving.metrics import Metrics
from eomt_deploy.serving.queue import MAX_ATTEMPTS, Pending, RequestQueue
from eomt_deploy.serving.supervision import Worker
from eomt_deploy.serving.work import Answer, RequestError, ServedModel, Work
from eomt_deploy.serving.worker import GONE, WorkerOptions

REMEMBERED = 64
"""Number of images whose worker is remembered, for repeated post-processing."""


@dataclass(frozen=True)
class PoolOptions:
    """How requests for one model are processed.

    Attributes:
        workers: number of worker processes.
        max_batch: maximum number of images that a worker processes together.
        max_delay: seconds that an image waits for others to form a batch.
        max_queue: maximum number of waiting requests.
        timeout: seconds from the arrival of a request to its answer.
    """

    workers: int = 1
    max_batch: int = 8
    max_delay: float = 0.002
    max_queue: int = 64
    timeout: float = 30.0


class ModelPool:
    """One model, its queue and its workers. All methods can be called from any thread.

    Args:
        name: name that clients use.
        path: model file.
        options: how requests are processed.
        opening: how workers open the model file.
        metrics: where times and events are counted.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        options: PoolOptions,
        opening: WorkerOptions,
        metrics: Metrics,
    ) -> None:
        self.name, self.path, self.options = name, path, options
        self._opening, self._metrics = opening, metrics
        self._queue = RequestQueue(options.max_queue, self._busy)
        self._workers: list[Worker] = []
        self._numbers = iter(range(1 << 60))
        self._kept_by: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()
        self._reloading = Lock()
        self._seconds = 0.1  # moving average for one image, for Retry-After
        self.model: ServedModel | None = None
        metrics.watch_queue(name, self._queue.__len__)

    def start(self) -> ServedModel:
        """Start the workers and wait until they have opened the model.

        Raises:
            EomtDeployError: the model cannot be opened.
        """
        workers = self._start_workers()
        self.model = workers[0].model
        with self._lock:
            self._workers = workers
        return workers[0].model

    def _start_workers(self) -> list[Worker]:
        workers: list[Worker] = []
        try:
            for _ in range(self.options.workers):
                workers.append(Worker(self, next(self._numbers), self._opening))
        except BaseException:
            for worker in workers:
                worker.retire()
            raise
        return workers

    @property
    def ready(self) -> bool:
        """Whether a worker can process requests."""
        return any(worker.alive for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process_id for worker in self._workers]

    def submit(self, work: Work) -> Future[Answer]:
        """Add a request to the queue.

        Args:
            work: the image.

        Returns:
            a future of the answer; it raises :class:`RequestError`. Cancelling it takes the
            request out of the queue.

        Raises:
            RequestError: the queue is full, or the outputs of this image are not kept.
        """
        worker = None
        if work.image is None:
            with self._lock:
                worker = self._kept_by.get(work.key or "")
            if worker is None:
                raise _not_kept()
        item = Pending(work, time.monotonic() + self.options.timeout, worker)
        self._queue.put(item)
        if worker is not None and worker not in [w.number for w in self._workers]:
            self._queue.fail_bound([worker], _not_kept())  # the model was reloaded
        return item.future

    @staticmethod
    def new_key() -> str:
        """A name for outputs that are kept; it cannot be guessed."""
        return uuid.uuid4().hex

    def _busy(self) -> RequestError:
        waiting = len(self._queue) * self._seconds / max(1, len(self._workers))
        return RequestError(
            503,
            f"The queue of model {self.name} is full ({self.options.max_queue} requests).",
            fix="Try again later.",
            retry_after=max(1.0, waiting),
        )

    def reload(self) -> ServedModel:
        """Open the model file again with new workers; the old ones first finish their requests.

        Raises:
            RequestError: the file cannot be opened, then the old workers continue; or another
                reload is running.
        """
        if not self._reloading.acquire(blocking=False):
            raise RequestError(409, "This model is being reloaded.", fix="Wait until it is ready.")
        try:
            try:
                workers = self._start_workers()
            except EomtDeployError as error:
                raise RequestError.from_error(error) from error
            with self._lock:
                old, self._workers = self._workers, workers
                self._kept_by.clear()
            self.model = workers[0].model
            for worker in old:
                worker.retire()
            self._queue.fail_bound([worker.number for worker in old], _not_kept())
            return workers[0].model
        finally:
            self._reloading.release()

    def close(self, seconds: float) -> None:
        """Accept no more requests, finish those in the queue, and stop the workers.

        Args:
            seconds: maximum time; requests that are left then get an error.
        """
        self._queue.close()
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
        self._queue.fail_all(
            RequestError(503, "The server has stopped.", fix="Send the request again.")
        )
        for worker in self._workers:
            worker.retire(kill=True)

    # Called by the threads of the workers.

    def take(self, worker: Worker) -> list[Pending] | None:
        return self._queue.take(
            worker.number,
            self.options.max_batch,
            self.options.max_delay,
            lambda: worker.retired or not worker.alive,
        )

    @property
    def finished(self) -> bool:
        """Whether there are no requests and will be none."""
        return self._queue.finished

    def wake(self) -> None:
        self._queue.wake()

    def answered(
        self, worker: Worker, batch: Sequence[Pending], replies: Sequence[Answer | RequestError]
    ) -> None:
        """Give the replies of a worker to those who wait for them."""
        now = time.monotonic()
        for item, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Answer):
                if item.work.key is not None:
                    self._remember(item.work.key, worker.number)
                computed = sum(reply.seconds.values())
                waited = max(0.0, now - item.arrived - computed)
                reply = Answer(
                    reply.body, reply.media_type, {"queue": waited, **reply.seconds}, reply.batch
                )
                self._seconds += 0.1 * (computed / reply.batch - self._seconds)
                self._metrics.answered(self.name, reply)
            item.finish(reply)

    def _remember(self, key: str, worker: int) -> None:
        with self._lock:
            self._kept_by[key] = worker
            self._kept_by.move_to_end(key)
            while len(self._kept_by) > REMEMBERED:
                self._kept_by.popitem(last=False)

    def lost(self, batch: Sequence[Pending], reason: str) -> None:
        """A worker died with these requests: try them again, but not for ever."""
        again = []
        for item in batch:
            if item.future.done():
                continue
            item.attempts += 1
            if item.attempts < MAX_ATTEMPTS and item.work.image is not None:
                again.append(item)
                continue
            item.finish(
                RequestError(
                    500,
                    f"The worker process ended while it processed this image ({reason}).",
                    why=f"It was tried {item.attempts} times.",
                    fix="Check the memory of the server; other images are not affected.",
                )
            )
        self._queue.put_back(again)

    def restarted(self) -> None:
        """Count the restart of a worker, whose kept outputs are lost."""
        self._metrics.restarted(self.name)


def _not_kept() -> RequestError:
    return RequestError(404, GONE, fix="Send the image again.")
