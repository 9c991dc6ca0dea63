"""Where text goes: results to stdout, everything about the run to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eomt_deploy.errors import UsageError
from eomt_deploy.files import write_atomically

WIDE = 120
"""Columns where there is no terminal to ask, as in a pipe or a log."""


def _console(*, to_stderr: bool) -> Console:
    console = Console(stderr=to_stderr)
    return console if console.is_terminal else Console(stderr=to_stderr, width=WIDE)


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def print_json(data: Any) -> None:
    """Plain JSON on stdout: nothing wrapped, nothing coloured."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def write_json(path: Path, data: Any) -> None:
    """JSON to a file, or to stdout for ``-``."""
    if str(path) == "-":
        print_json(data)
    else:
        write_atomically(path, json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner that names the step; plain lines where there is no terminal."""
    if not stderr.is_terminal:
        yield lambda text: stderr.print(text, markup=False)
        return
    with stderr.status("starting") as status:
        yield lambda text: status.update(text)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; the function takes how much is done."""
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
        TextColumn("{task.fields[score]}"),
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
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"Size {text!r} cannot be read.", fix="Write 640, or 480x640 for height x width."
        )
    sides = [int(part) for part in parts]
    return sides[0], sides[-1]
