"""Run hostile inputs in worker processes, which may die, and add up their results."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HANG = 40.0
"""Seconds on one input after which its worker is killed; five times as many for valid inputs."""
CHUNK = 200
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1", "TERM": "dumb",
}  # fmt: skip


@dataclass
class Result:
    """Results of all inputs of a target."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    peak: tuple[int, int] = (0, 0)

    def add(self, tally: dict[str, Any]) -> None:
        self.inputs += tally["inputs"]
        self.accepted += tally["accepted"]
        self.seconds += tally["seconds"]
        for name in ("refused", "causes"):
            mine = getattr(self, name)
            for key, count in tally[name].items():
                mine[key] = mine.get(key, 0) + count
        self.slowest = max(self.slowest, tuple(tally["slowest"]))
        self.peak = max(self.peak, tuple(tally["peak"]))
        known = [f["cause"] for f in self.failures]
        self.failures += [f for f in tally["failures"] if known.count(f["cause"]) < 2]


@dataclass(frozen=True)
class Job:
    target: str
    seed: int
    first: int
    count: int


class Worker:
    """One worker process, which is replaced when it dies."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="hostile-"))
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        environment = os.environ | ENVIRONMENT | {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.hostile", "--worker", str(self.scratch)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, job: Job) -> dict[str, Any] | tuple[int, str]:
        """The tally of a chunk, or the number of the input that ended the process and how."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        process = self.process
        assert process.stdin
        assert process.stdout
        (self.scratch / "progress").write_bytes(struct.pack("<q", -1))
        process.stdin.write(json.dumps(vars(job)) + "\n")
        process.stdin.flush()
        last, since = -2, time.monotonic()
        while not select.select([process.stdout], [], [], 0.5)[0]:
            now, index = time.monotonic(), self._index()
            if index != last:
                last, since = index, now
            elif now - since > HANG * (5 if index < 0 else 1):
                return index, self._kill()
        line = process.stdout.readline()
        if line:
            tally: dict[str, Any] = json.loads(line)
            return tally
        code = process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return self._index(), f"the process died: {how}\n{self._trace()}"

    def _index(self) -> int:
        data = (self.scratch / "progress").read_bytes()
        return int(struct.unpack("<q", data)[0]) if len(data) == 8 else -1

    def _trace(self) -> str:
        traces = [self.scratch / "output", self.scratch / "trace"]
        return "\n".join(p.read_text(errors="replace")[-3000:] for p in traces if p.exists())

    def _kill(self) -> str:
        assert self.process
        os.kill(self.process.pid, signal.SIGUSR1)  # makes it write its stack trace
        time.sleep(1)
        self.process.kill()
        self.process.wait()
        return f"no answer for {HANG:g} s\n{self._trace()}"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


class Campaign:
    """Runs jobs in several workers; `done` gets the target of each job that is complete."""

    def __init__(self, jobs: Sequence[Job], workers: int, done: Callable[[str], None]) -> None:
        self.results = {job.target: Result(job.target) for job in jobs}
        self.pending = set(jobs)
        self._done = done
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self._jobs.put(job)
        self._lock = threading.Lock()
        self._stopped = False
        self._workers = [Worker() for _ in range(workers)]
        self._threads = [threading.Thread(target=self._work, args=(w,)) for w in self._workers]
        for thread in self._threads:
            thread.start()

    def _work(self, worker: Worker) -> None:
        try:
            while not self._stopped:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    return
                self._run(worker, job)
        finally:
            worker.close()

    def _run(self, worker: Worker, job: Job) -> None:
        for tally in tallies(worker, job, lambda: self._stopped):
            self._add(job.target, tally)
        if self._stopped:
            return
        with self._lock:
            self.pending.discard(job)
            self._done(job.target)

    def _add(self, target: str, tally: dict[str, Any]) -> None:
        with self._lock:
            self.results[target].add(tally)

    def join(self) -> None:
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.2)

    def stop(self) -> None:
        """End all processes now."""
        self._stopped = True
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
        self.join()


def tallies(
    worker: Worker, job: Job, stopped: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    """Yield the tally of a job, or the tallies of its parts if inputs end the process."""
    first, end = job.first, job.first + job.count
    while first < end and not stopped():
        # If an input ends the process, the inputs before it run again, since their tally is lost.
        answer = worker.run(Job(job.target, job.seed, first, end - first))
        if isinstance(answer, dict):
            yield answer
            return
        index, how = answer
        if stopped():
            return
        if index > first:
            before = worker.run(Job(job.target, job.seed, first, index - first))
            if isinstance(before, dict):
                yield before
        yield lost(job, index, how)
        if index < 0:  # it died before the first input
            return
        first = index + 1


def lost(job: Job, index: int, how: str) -> dict[str, Any]:
    """The tally of an input that ended its process."""
    cause = how.splitlines()[0]
    case = f"{job.target} --seed {job.seed} --first {index} --count 1"
    failure = {"cause": cause, "case": case, "steps": [], "details": how, "files": {}}
    return {"inputs": 1, "accepted": 0, "refused": {}, "causes": {cause: 1}, "failures": [failure],
            "seconds": 0.0, "slowest": (0.0, 0), "peak": (0, 0)}  # fmt: skip


def split(target: str, seed: int, first: int, count: int) -> list[Job]:
    """Split a job into chunks, so that all workers have work."""
    return [
        Job(target, seed, start, min(CHUNK, first + count - start))
        for start in range(first, first + count, CHUNK)
    ]
