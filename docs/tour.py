"""Try what users reach for, in 36 steps, and write what happened to `docs/tour.md`.

    make setup
    .venv/bin/python docs/tour.py            # prints the page
    .venv/bin/python docs/tour.py --write    # writes docs/tour.md

Each step runs in a temporary folder with the embedded model, the scenes of the package, two short
videos and a web server on 127.0.0.1. `tour_rows.py` has the steps. The exit code is 1 if a step
fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests")]

from clips import file_server, mjpeg_server, turn_clockwise, write_clip  # noqa: E402
from tour_checks import Outcome, Row  # noqa: E402
from tour_rows import BEFORE, FILES, GROUPS, OPENING, STREAM  # noqa: E402

ROWS = [row for rows in GROUPS.values() for row in rows]
WORKED, FAILED, ABSENT = "✓", "✗", "error shown"
LONGEST, WIDEST = 16, 150
"""Maximum number and width of the lines of output that the page shows."""
PHONE = (0, 0.04, 0.08, 0.2, 0.24, 0.4, 0.44, 0.48, 0.6, 0.64)
"""Times of the frames of a variable frame rate, in seconds."""
PROGRESS = re.compile(r": took \d|\d (s|min) elapsed")
"""Lines that only slow machines print."""
SECONDS = 300
"""Maximum time of one step."""

INTRODUCTION = """\
# A tour in {number} steps

This page shows what users of a segmentation library often reach for, as they type it, and what \
happens. `python docs/tour.py --write` ran every step and checked its result: the files that it \
wrote and the lines that it printed. Serving has [its own page](serving.md).

{summary}

Each step ran in a folder with the model (below), the drawn scenes of `examples/scenes`, a video \
of two seconds with sound (`clip.mp4`), a video as phones record it (`phone.mov`) and a list of \
images (`list.txt`). A program on the same machine served the scenes and a Motion JPEG stream. \
The results are explained in [Results](results.md), [Videos](video.md) and \
[Command line](commands.md).
"""


@dataclass(frozen=True)
class Tried:
    """What happened: the mark for the table, the lines to show, and what is wrong."""

    mark: str
    output: str
    wrong: str = ""


def write_inputs(folder: Path) -> None:
    """Write what the steps read, except for the models."""
    scenes = folder / "examples" / "scenes"
    shutil.copytree(ROOT / "examples" / "scenes", scenes)
    names = [f"examples/scenes/scene-{number}.png\n" for number in (1, 2, 6)]
    (folder / "list.txt").write_text("".join(names))
    with Image.open(scenes / "scene-1.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    write_clip(
        folder / "clip.mp4",
        [number / 25 for number in range(50)],
        frame=lambda number: np.ascontiguousarray(np.roll(pixels, -4 * number, axis=1)),
        sound=True,
    )
    stored = np.ascontiguousarray(np.rot90(pixels))  # players turn it upright
    write_clip(folder / "phone.mov", PHONE, frame=lambda _: stored, sound=True)
    turn_clockwise(folder / "phone.mov")


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """The addresses in the steps, with the addresses that answer."""
    with (
        file_server(folder / "examples" / "scenes") as files,
        mjpeg_server(path="/camera.mjpg") as stream,
    ):
        yield {FILES: files, STREAM: stream.removesuffix("/camera.mjpg")}


def run(row: Row, folder: Path, addresses: dict[str, str]) -> Outcome:
    """Run a step as a user does: commands in one shell, or a Python program."""
    with tempfile.TemporaryDirectory() as other:
        codes = Path(other) / "codes"
        if row.language == "python":
            command = [sys.executable, "-c", f"{OPENING}\n\n{row.code}"]
        else:
            script = [
                f"echo {shlex.quote('$ ' + line)}\n{line}\necho $? >> {shlex.quote(str(codes))}"
                for line in row.code.splitlines()
            ]
            command = ["bash", "-c", "\n".join(script)]
        for shown, real in addresses.items():
            command[-1] = command[-1].replace(shown, real)
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=SECONDS,
        )
        output = done.stdout
        for shown, real in addresses.items():
            output = output.replace(real, shown)
        found = codes.read_text().split() if codes.exists() else [done.returncode]
    return Outcome(folder, output, tuple(map(int, found)))


def _environment() -> dict[str, str]:
    """Commands of this Python's environment, the code of this clone, and lines of fixed length."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PATH": programs, "PYTHONPATH": code, "COLUMNS": "100", "TERMINAL_WIDTH": "100",
        "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip


def try_row(row: Row, folder: Path, addresses: dict[str, str]) -> Tried:
    """Run a step and check its result."""
    outcome = run(row, folder, addresses)
    output = shortened(outcome, row)
    if row.absent and row.absent in outcome.output:
        return Tried(ABSENT, output)
    wanted = row.codes or (0,) * len(outcome.codes)
    if outcome.codes != wanted:
        return Tried(FAILED, output, f"the exit codes are {outcome.codes}, not {wanted}")
    for check in row.checks:
        try:
            check(outcome)
        except Exception as error:  # e.g. a file that is missing or cannot be read
            return Tried(FAILED, output, f"{type(error).__name__}: {error}")
    return Tried(WORKED, output)


def shortened(outcome: Outcome, row: Row) -> str:
    """The output without paths of this machine, times, and lines that the page leaves out."""
    text = outcome.output.replace(f"{outcome.folder}/", "").replace(f"{ROOT}/", "")
    if row.masked:
        text = re.sub(row.masked, "…", text)
    lines: list[str] = []
    for line in map(str.rstrip, text.splitlines()):
        if PROGRESS.search(line):
            continue
        hidden = row.only and not line.startswith("$ ") and not re.search(row.only, line)
        if not hidden:
            lines.append(line if len(line) <= WIDEST else f"{line[:WIDEST]} …")
        elif lines and lines[-1] != "…":
            lines.append("…")
    return "\n".join(lines if len(lines) <= LONGEST else [*lines[:LONGEST], "…"])


def page(tried: dict[str, Tried]) -> str:
    """The page in Markdown, from what happened in each step, by its title."""
    parts = [INTRODUCTION.format(number=len(ROWS), summary=summary(tried)), table(tried)]
    parts.append(section(BEFORE, tried[BEFORE.title], f"## {BEFORE.title}"))
    parts.append(f"The Python programs start with these lines:\n\n```python\n{OPENING}\n```\n")
    number = 0
    for group, rows in GROUPS.items():
        parts.append(f"## {group}\n")
        for row in rows:
            number += 1
            parts.append(section(row, tried[row.title], f"### {number}. {row.title}"))
    return "\n".join(parts)


def summary(tried: dict[str, Tried]) -> str:
    """How many steps worked, in one paragraph."""
    marks = [tried[row.title].mark for row in ROWS]
    text = f"{marks.count(WORKED)} of {len(ROWS)} steps worked."
    if ABSENT in marks:
        missing = ", ".join(str(n) for n, mark in enumerate(marks, 1) if mark == ABSENT)
        text += f" The machine lacks the hardware for step {missing}, so the page shows the error."
    if count := marks.count(FAILED):
        text += f" {count} failed."
    return text


def table(tried: dict[str, Tried]) -> str:
    lines = ["| | step | result |", "|---|---|---|"]
    number = 0
    for group, rows in GROUPS.items():
        lines.append(f"| | **{group}** | |")
        for row in rows:
            number += 1
            lines.append(f"| {number} | {row.title} | {tried[row.title].mark} |")
    return "\n".join(lines) + "\n"


def section(row: Row, found: Tried, heading: str) -> str:
    """The heading, the code and the output of one step."""
    text = f"{heading}\n\n"
    if row.language == "python":
        text += f"```python\n{row.code}\n```\n\n```text\n{found.output}\n```\n"
    else:
        text += f"```console\n{found.output}\n```\n"
    return text + (f"\n{found.mark} {found.wrong}.\n" if found.wrong else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Write docs/tour.md.")
    write = parser.parse_args().write
    tried: dict[str, Tried] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_inputs(folder)
        with servers(folder) as addresses:
            for number, row in enumerate([BEFORE, *ROWS]):
                found = tried[row.title] = try_row(row, folder, addresses)
                print(f"{number:2} {found.mark} {row.title} {found.wrong}", file=sys.stderr)
    if write:
        (ROOT / "docs" / "tour.md").write_text(page(tried), encoding="utf-8")
    else:
        print(page(tried), end="")
    return int(any(found.mark == FAILED for found in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
