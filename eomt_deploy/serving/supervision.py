"""Worker processes as the server sees them: started, supplied with batches, and replaced."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from threading import Condition, Lock, Thread, Timer
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from eomt_deploy.errors import EomtDeployError, ModelFileError
from eomt_deploy.serving.log import say
from eomt_deploy.serving.queue import Pending
from eomt_deploy.serving.work import RequestError, ServedModel
from eomt_deploy.serving.worker import WorkerOptions, run_worker

if TYPE_CHECKING:
    from eomt_deploy.serving.pool import ModelPool

SLOTS = 2
"""Batches that a worker processes at the same time: the images of one are decoded while the network
runs for the other."""
MAX_PAUSE = 30.0
"""Maximum seconds between two attempts to start a worker."""
EXIT_SECONDS = 5.0

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
