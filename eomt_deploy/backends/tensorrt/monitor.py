"""Progress of the builder as one fraction, and a build that can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from eomt_deploy.backends.building import Progress

Result = TypeVar("Result")
POLL_SECONDS = 0.1


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Nested phases with a known number of steps, combined to one fraction."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str) -> None:
        if name in self._phases:
            self._phases[name].done += 1

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)

    @property
    def fraction(self) -> float:
        """Finished fraction, 0 to 1; it never decreases, even if a phase has more steps than
        announced."""
        roots = [n for n, p in self._phases.items() if p.parent not in self._phases]
        now = max((self._share(name) for name in roots), default=self._fraction)
        self._fraction = max(self._fraction, now)
        return self._fraction

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = sum(self._share(n) for n, p in self._phases.items() if p.parent == name)
        return min(1.0, (phase.done + min(1.0, inner)) / phase.steps)


def make_monitor(module: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """Create an ``IProgressMonitor`` of the library ``module``.

    It calls ``progress``, and stops the builder after ``cancelled`` is set. Exceptions of
    ``progress`` cannot pass through the builder: the monitor keeps them in ``error``.
    """
    phases, lock = Phases(), threading.Lock()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with lock:
                phases.start(name, parent, steps)
            self._report(name)

        def step_complete(self, name: str, step: int) -> bool:
            with lock:
                phases.step(name)
            self._report(name)
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            with lock:
                phases.finish(name)

        def _report(self, name: str) -> None:
            if self.error is not None:
                return
            with lock:
                fraction = phases.fraction
            try:
                progress(name[:1].lower() + name[1:], fraction)
            except BaseException as error:  # including KeyboardInterrupt
                self.error = error
                cancelled.set()

    return Monitor()


def run_cancellable(work: Callable[[], Result], cancelled: threading.Event) -> Result:
    """Run ``work`` in a separate thread, so that this thread can handle Ctrl-C and SIGTERM.

    An interrupt sets ``cancelled``, waits until ``work`` has ended, and is raised again.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised below, in the waiting thread
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="eomt-deploy build", daemon=True).start()
    try:
        while not done.wait(POLL_SECONDS):
            pass
    except BaseException:
        cancelled.set()
        done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
