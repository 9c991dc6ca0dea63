"""Where text goes: results to stdout, everything about the run to stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from eomt_deploy.errors import UsageError
from eomt_deploy.files import GENERATOR, write_atomically

if TYPE_CHECKING:
    from eomt_deploy.backends.engine import Engine

WIDE = 120
"""Columns where there is no terminal to ask, as in a pipe or a log."""


def _console(*, to_stderr: bool) -> Console:
    # No markup: "[red]" in a file name is a file name.
    options: dict[str, Any] = {"stderr": to_stderr, "markup": False, "emoji": False}
    console = Console(**options, highlight=False)
    return console if console.is_terminal else Console(**options, highlight=False, width=WIDE)


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def say(text: str, console: Console = stdout, style: str | None = None) -> None:
    """One line of text as it is: neither wrapped nor interpreted."""
    console.print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    say(f"warning: {text}", stderr, "yellow")


def say_remarks(engine: Engine, name: str = "") -> None:
    """What a user should know about how a model runs, as warnings.

    Args:
        name: of the model, where there are several.
    """
    for remark in engine.remarks:
        warn(f"{name}: {remark}" if name else remark)


def print_json(data: Any) -> None:
    """Plain JSON on stdout: nothing wrapped, nothing coloured."""
    print(json.dumps(data, indent=2))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """JSON to a file, which is marked as ours, or to stdout for ``-``."""
    if str(path) == "-":
        print_json(data)
    else:
        content = json.dumps({"generator": GENERATOR, **data}, indent=1, allow_nan=False)
        write_atomically(path, content.encode() + b"\n")


@contextmanager
def ending_with(note: str) -> Iterator[None]:
    """However the block ends, its last line on stderr is this note, if there is one."""
    try:
        yield
    finally:
        if note:
            say(note, stderr)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner that names the step; plain lines where there is no terminal."""
    if not stderr.is_terminal:
        yield lambda text: say(text, stderr)
        return
    with stderr.status("starting") as status:
        yield lambda text: status.update(Text(text))


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
            f"Size {text!r} cannot be read.", fix="Write 640, or 480x640 for height x width."
        )
    return int(match[1]), int(match[2] or match[1])
