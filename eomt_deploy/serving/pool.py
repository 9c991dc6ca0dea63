"""The worker processes of one model: batches, crashes, and reloading."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Condition, Lock, Thread, Timer
from typing import Any
from weakref import WeakSet

from eomt_deploy.errors import EomtDeployError, ModelFileError
from eomt_deploy.serving.log import say
from eomt_deploy.serving.metrics import Metrics
from eomt_deploy.serving.queue import MAX_ATTEMPTS, Pending, RequestQueue
from eomt_deploy.serving.work import Answer, RequestError, ServedModel, Work
from eomt_deploy.serving.worker import GONE, WorkerOptions, run_worker

SLOTS = 2
"""Batches that a worker processes at the same time: the images of one are decoded while the network
runs for the other."""
REMEMBERED = 64
"""Number of images whose worker is remembered, for repeated post-processing."""
MAX_PAUSE = 30.0
"""Maximum seconds between two attempts to start a worker."""
EXIT_SECONDS = 5.0


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


_PROCESSES: WeakSet[Any] = WeakSet()


@atexit.register
def kill_processes() -> None:
    """Kill all workers, also those that are starting.

    Python waits for its processes when it ends, and these do not receive SIGTERM.
    """
    for process in list(_PROCESSES):
        with suppress(ValueError):  # a closed process
            process.kill()


class Turns:
    """Batches share a worker, but one that may kill it runs alone."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._running = 0
        self._alone = False
        self._waiting = 0  # batches that want to run alone

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for the turn of a batch."""
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(
                lambda: (
                    not self._alone
                    and not (alone and self._running)
                    and not (self._waiting and not alone)
                )
            )
            self._waiting -= alone
            self._running += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._alone = False
                self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class _Process:
    """A running worker process.

    Its connections are closed when nothing refers to them any more: closing them while another
    thread waits for one would let that thread wait on the number of a closed file.
    """

    process: Any
    connections: Sequence[Connection]
    model: ServedModel

    def kill(self) -> None:
        self.process.kill()
        self.process.join(EXIT_SECONDS)


class Worker:
    """One worker process, which is started again when it dies.

    Args:
        pool: where requests come from.
        number: identity of this worker.
        opening: how it opens the model file.

    Raises:
        EomtDeployError: the model cannot be opened.
    """

    def __init__(self, pool: ModelPool, number: int, opening: WorkerOptions) -> None:
        self.number = number
        self.retired = False
        self._pool = pool
        self._opening = opening
        self._lock = Lock()
        self._turns = Turns()
        self._current = self._start()
        self._threads = [
            Thread(target=self._work, args=(slot,), name=f"{pool.name}-{number}-{slot}")
            for slot in range(SLOTS)
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def model(self) -> ServedModel:
        """What the process reported about the model."""
        return self._current.model

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return bool(self._current.process.is_alive())

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return int(self._current.process.pid)

    def _start(self) -> _Process:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(SLOTS)]
        theirs = [there for _, there in pairs]
        process = context.Process(
            target=run_worker,
            args=(str(self._pool.path), self._opening, theirs),
            name=f"eomt-deploy {self._pool.name}",
            daemon=True,
        )
        # Python's helper process unblocks signals when it starts, so it must run before.
        resource_tracker.ensure_running()
        with _without_signals():
            process.start()
        _PROCESSES.add(process)
        for connection in theirs:
            connection.close()
        ours = [here for here, _ in pairs]
        try:
            reply = ours[0].recv()
        except (EOFError, OSError):
            reply = ModelFileError(
                f"The worker process of model {self._pool.name} ended while it opened the model.",
                fix="Check the memory of this machine, and that `eomt-deploy predict` can run it.",
            )
        if isinstance(reply, EomtDeployError):
            process.join(EXIT_SECONDS)
            process.kill()
            raise reply
        return _Process(process, ours, reply)

    def _work(self, slot: int) -> None:
        while not self.retired and not self._pool.finished:
            current = self._current
            batch = self._pool.take(self)
            if batch is None:
                if not current.process.is_alive():
                    self._restart(current)
                continue
            with self._turns.turn(alone=batch[0].attempts > 0):
                current = self._current
                error = self._process_batch(current, current.connections[slot], batch)
            if error:
                say(f"a worker of {self._pool.name} ended ({error}); it is started again")
                self._pool.lost(batch, error)
                self._restart(current)

    def _process_batch(
        self, current: _Process, connection: Connection, batch: list[Pending]
    ) -> str | None:
        """Let the process answer; returns why it could not."""
        left = max(item.deadline for item in batch) - time.monotonic()
        # A process that hangs is killed; this also ends a send() that waits for it.
        watchdog = Timer(max(left, 0.1), self._give_up, (current, batch))
        watchdog.start()
        try:
            connection.send([item.work for item in batch])
            replies = connection.recv()
        except (EOFError, OSError):
            current.process.join(EXIT_SECONDS)
            return f"exit code {current.process.exitcode}"
        finally:
            watchdog.cancel()
        self._pool.answered(self, batch, replies)
        return None

    def _give_up(self, current: _Process, batch: Sequence[Pending]) -> None:
        """Answer requests that take too long; a second attempt would take as long."""
        slow = RequestError(
            504,
            f"The image was not finished in {self._pool.options.timeout:g} s.",
            fix="Send a smaller image, or start the server with a longer --timeout.",
        )
        for item in batch:
            item.finish(slow)
        current.kill()

    def _restart(self, dead: _Process) -> None:
        """Start a process instead of a dead one, unless another thread did it already."""
        with self._lock:
            pause = 0.5
            while self._current is dead and not self.retired:
                dead.kill()
                try:
                    self._current = self._start()
                    self._pool.restarted()
                except Exception as error:  # e.g. the model file was removed
                    what = error.what if isinstance(error, EomtDeployError) else repr(error)
                    say(f"a worker of {self._pool.name} cannot start: {what}")
                    time.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE)

    def wait(self, seconds: float) -> None:
        """Wait until the queue is empty and its last batch is answered."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def retire(self, *, kill: bool = False) -> None:
        """Take no more requests; the process ends after those that it has."""
        self.retired = True
        self._pool.wake()
        if kill:
            self._current.kill()
        else:
            Thread(target=self._finish, daemon=True).start()

    def _finish(self) -> None:
        for thread in self._threads:
            thread.join()
        for connection in self._current.connections:
            connection.close()
        self._current.process.join(EXIT_SECONDS)
        self._current.kill()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Processes that start in this block do not receive the signals that stop the server.

    Ctrl-C goes to all processes of a terminal, and service managers send SIGTERM to all processes
    of a service, but workers must finish the requests in the queue. They end when the server closes
    their connections.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    stopping = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
