"""What an export has to do, and how much of it is done.

The unit is one pass of an image through the network in PyTorch: nearly all the time of an export
with calibration is spent on passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[str, float | None], None]
"""Called with a message, and the finished fraction (0 to 1; None if it is not known)."""

EMULATED = 1.6
"""Passes that one pass through the emulation of a low precision takes."""
PROBED = 1.5
"""Passes that one pass takes when the range of every tensor is measured."""


class Work:
    """Planned and finished steps.

    Args:
        progress: receives the messages of all phases.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._planned: dict[str, tuple[int, float]] = {}
        self._begun: Counter[str] = Counter()

    def plan(self, phase: str, steps: int, passes: float = 1) -> None:
        """Plan a phase of equal steps.

        Args:
            phase: name of the phase.
            steps: number of steps; each of them is announced by one message.
            passes: cost of a step.
        """
        self._planned[phase] = (steps, passes)

    @property
    def passes(self) -> float:
        """Cost of all planned steps."""
        return sum(steps * passes for steps, passes in self._planned.values())

    def phase(self, name: str) -> Callable[[str], None]:
        """A progress function for one phase: each message is the begin of a step."""

        def begin(text: str) -> None:
            self._begun[name] += 1
            self._progress(text, self._fraction(name))

        return begin

    def say(self, text: str) -> None:
        """Show a message about work that takes no passes."""
        self._progress(text, self._fraction())

    def _fraction(self, current: str = "") -> float | None:
        """Finished fraction; the step that has just begun does not count."""
        if not self.passes:
            return None
        done = 0.0
        for name, (steps, passes) in self._planned.items():
            finished = self._begun[name] - (name == current)
            done += min(max(finished, 0), steps) * passes
        return done / self.passes


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced."""
    if len(items) <= count or count < 2:
        return list(items[:count])
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def duration(seconds: float) -> str:
    """A rounded duration: ``40 s``, ``3 min``."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min"
