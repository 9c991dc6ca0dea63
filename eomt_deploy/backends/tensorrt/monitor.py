"""The builder's own phases as one progress, and a build that can be stopped."""

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
    """Nested phases of known length, added up to one fraction."""

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
        """Share of the whole that is done; it does not fall when a phase is longer than said."""
        roots = [n for n, p in self._phases.items() if p.parent not in self._phases]
        now = max((self._share(name) for name in roots), default=self._fraction)
        self._fraction = max(self._fraction, now)
        return self._fraction

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = sum(self._share(n) for n, p in self._phases.items() if p.parent == name)
        return min(1.0, (phase.done + min(1.0, inner)) / phase.steps)


def make_monitor(module: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """An ``IProgressMonitor`` of the library ``module``.

    It tells ``progress``, and asks the builder to stop once ``cancelled`` is set. What ``progress``
    raises cannot pass through the builder: it stands in the monitor's ``error``.
    """
    phases, lock = Phases(), threading.Lock()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with lock:
                phases.start(name, parent, steps)
            self._tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            with lock:
                phases.step(name)
            self._tell(name)
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            with lock:
                phases.finish(name)

        def _tell(self, name: str) -> None:
            if self.error is not None:
                return
            with lock:
                fraction = phases.fraction
            try:
                progress(name[:1].lower() + name[1:], fraction)
            except BaseException as error:  # also an interrupt that lands here
                self.error = error
                cancelled.set()

    return Monitor()


def run_cancellable(work: Callable[[], Result], cancelled: threading.Event) -> Result:
    """Run ``work`` in a thread of its own, so that this one hears Ctrl-C and SIGTERM.

    Whatever interrupts the waiting sets ``cancelled``, waits for ``work`` to end, and goes on.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the waiting thread below
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
