"""Console output: results on stdout, everything about the run on stderr."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from eomt_deploy.cli.stopping import received_signal
from eomt_deploy.errors import UsageError
from eomt_deploy.files import GENERATOR, write_atomically
from eomt_deploy.units import time_text

if TYPE_CHECKING:
    from eomt_deploy.backends.engine import Engine

WIDE = 140
"""Columns if there is no terminal, e.g. in a pipe or a log: a row of a table stays on one line, for
tools such as grep."""
SHORT_SECONDS = 2.0
"""The time of a phase is shown from here on."""
LINE_SECONDS = 10.0
"""Seconds between two lines of progress in a log."""


def _console(*, to_stderr: bool) -> Console:
    # No markup: "[red]" in a file name is a file name.
    options: dict[str, Any] = {"stderr": to_stderr, "markup": False, "emoji": False}
    console = Console(**options, highlight=False)
    return console if console.is_terminal else Console(**options, highlight=False, width=WIDE)


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def say(text: str, console: Console = stdout, style: str | None = None) -> None:
    """Print one line of text without wrapping or markup."""
    if received_signal():  # if its exception ended a print of rich, rich keeps all later text
        print(text, file=console.file)
    else:
        console.print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {text}", stderr, "yellow")


def say_remarks(engine: Engine, name: str = "") -> None:
    """Print the remarks of an engine as warnings.

    Args:
        name: name of the model, if there are several.
    """
    for remark in engine.remarks:
        warn(f"{name}: {remark}" if name else remark)


def print_json(data: Any) -> None:
    """Print JSON on stdout without wrapping or colours."""
    print(json.dumps(data, indent=2))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON to a file, which is marked as ours, or to stdout for ``-``."""
    if str(path) == "-":
        print_json(data)
    else:
        content = json.dumps({"generator": GENERATOR, **data}, indent=1, allow_nan=False)
        write_atomically(path, content.encode() + b"\n")


@contextmanager
def ending_with(note: str) -> Iterator[None]:
    """Print this note, if there is one, at the end of the block, even after an error."""
    try:
        yield
    finally:
        if note:
            say(note, stderr)


def times(elapsed: float, remaining: float | None) -> str:
    """Elapsed and remaining time as text; empty for a phase that is short so far.

    Args:
        elapsed: seconds since the phase began.
        remaining: seconds until it ends; None if that is not known.
    """
    if elapsed < SHORT_SECONDS:
        return ""
    left = f", about {time_text(remaining)} left" if remaining else ""
    return f"{time_text(elapsed)} elapsed{left}"


class _Times(ProgressColumn):
    """Elapsed and remaining time of a task."""

    def render(self, task: Task) -> Text:
        return Text(times(task.elapsed or 0, task.time_remaining))


class _Lines:
    """Progress without a terminal: a line for each step, and how long a step took that was long."""

    def __init__(self) -> None:
        self._started = self._began = time.monotonic()
        self._text = ""

    def step(self, text: str, fraction: float | None = None) -> None:
        """Begin a step.

        Args:
            fraction: finished fraction of all steps, 0 to 1; None if that is not known.
        """
        if text == self._text:
            return
        self.end()
        elapsed = time.monotonic() - self._started
        known = times(elapsed, elapsed * (1 / fraction - 1)) if fraction else ""
        say(f"{text} ({known})" if known else text, stderr)
        self._text, self._began = text, time.monotonic()

    def end(self) -> None:
        """End the last step."""
        took = time.monotonic() - self._began
        if self._text and took >= SHORT_SECONDS:
            say(f"{self._text}: took {time_text(took)}", stderr)
        self._text = ""


class _Counted:
    """Progress of many items without a terminal: a line from time to time, and one at the end."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done, self._score = title, total, 0, ""
        self._started = self._said = time.monotonic()

    def show(self, done: int, score: str = "") -> None:
        self._done, self._score = done, score
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS and 0 < done < self._total:
            self._said = now
            elapsed = now - self._started
            self._say(times(elapsed, elapsed * (self._total / done - 1)))

    def end(self) -> None:
        self._say(times(time.monotonic() - self._started, None))

    def _say(self, known: str) -> None:
        if known:
            score = f", {self._score}" if self._score else ""
            say(f"{self._title}: {self._done} of {self._total}{score}, {known}", stderr)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner with the step and its time; plain lines if there is no terminal."""
    with timed_steps() as show:
        yield lambda text: show(text, None)


@contextmanager
def timed_steps() -> Iterator[Callable[[str, float | None], None]]:
    """The step, the finished fraction and the times; plain lines if there is no terminal.

    The function takes the step and the fraction (0 to 1), or None if that is not known.
    """
    if not stderr.is_terminal:
        lines = _Lines()
        yield lines.step
        lines.end()
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        _Times(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(text: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            progress.update(task, description=text, completed=fraction or 0, total=total)

        yield show


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; the function takes the number of finished items."""
    with scored_bar(title, total) as show:
        yield lambda done: show(done, "")


@contextmanager
def scored_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar that also shows a running score; plain lines if there is no terminal."""
    if not stderr.is_terminal:
        counter = _Counted(title, total)
        try:
            yield counter.show
        finally:
            counter.end()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}", markup=False),
        _Times(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(title, total=total, score="")
        yield lambda done, score: progress.update(task, completed=done, score=score)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``640`` or ``480x640`` (height x width) to (H, W).

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text, re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"Size {text!r} is not valid.", fix="Write 640, or 480x640 for height x width."
        )
    return int(match[1]), int(match[2] or match[1])
