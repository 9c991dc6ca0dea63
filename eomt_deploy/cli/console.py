"""Console output: results on stdout, everything about the run on stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from eomt_deploy.errors import UsageError
from eomt_deploy.files import GENERATOR, write_atomically

if TYPE_CHECKING:
    from eomt_deploy.backends.engine import Engine

WIDE = 120
"""Columns if there is no terminal, e.g. in a pipe or a log."""


def _console(*, to_stderr: bool) -> Console:
    # No markup: "[red]" in a file name is a file name.
    options: dict[str, Any] = {"stderr": to_stderr, "markup": False, "emoji": False}
    console = Console(**options, highlight=False)
    return console if console.is_terminal else Console(**options, highlight=False, width=WIDE)


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def say(text: str, console: Console = stdout, style: str | None = None) -> None:
    """Print one line of text without wrapping or markup."""
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


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner that shows the step; plain lines if there is no terminal."""
    if not stderr.is_terminal:
        yield lambda text: say(text, stderr)
        return
    with stderr.status("starting") as status:
        yield lambda text: status.update(Text(text))


@contextmanager
def timed_steps() -> Iterator[Callable[[str, float | None], None]]:
    """The step, the finished fraction and the remaining time; plain lines if there is no terminal.

    The function takes the step and the fraction (0 to 1), or None if that is not known.
    """
    if not stderr.is_terminal:
        yield lambda text, _fraction: say(text, stderr)
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
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
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def scored_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar that also shows a running score."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}", markup=False),
        TimeRemainingColumn(),
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
