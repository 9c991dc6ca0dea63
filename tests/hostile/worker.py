"""The process that runs hostile inputs and watches for forbidden actions.

Its parent may have to kill it, so everything is written to disk or sent immediately.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .mutations import Files, Mutator

SECONDS = 5.0
"""Maximum number of seconds of one input."""
LONGEST_MESSAGE = 4000
ROOM = 3 << 30
"""Memory limit of a worker beyond its start, in bytes. It protects the machine from bombs."""
PREPARING = -1
"""Number that is reported while the valid inputs are created."""
FORBIDDEN = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "os.startfile", "socket.connect", "socket.getaddrinfo", "socket.bind",
    "pickle.find_class", "ctypes.dlopen", "urllib.Request",
})  # fmt: skip
CHANGING = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
                      "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"})  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NOTICES = re.compile(
    r"^(?:"
    r"/\S+/(?:PIL|torch)/\S+\.py:\d+: \w*Warning: .*\n(?:  .*\n)?"
    r"|(?:_?TIFF|ZIP|LZW|Fax|PackBits|JPEG|LogL|tempfile\.tif|PixarLog|CCITT"
    r"|MissingRequired|EstimateStrip)[\w.]*: .*\n"
    r")",
    re.MULTILINE,
)
"""Warnings of Pillow and PyTorch, and lines that libtiff writes directly to stderr.

Users of the API can filter the warnings; the command line must not show them, see
`test_quiet.py`. The lines of libtiff can only be hidden by redirecting stderr for all threads."""
OUR_FRAMES = re.compile(r"[/\\](eomt_deploy[/\\].*)$")
SHOWN_PER_CAUSE = 2


@dataclass
class Failure:
    """An input that broke the contract.

    Attributes:
        cause: equal for inputs that fail in the same place.
        case: arguments that repeat it: ``target --seed S --first N --count 1``.
    """

    cause: str
    case: str
    steps: list[str]
    details: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """Results of the inputs of one chunk."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    peak: tuple[int, int] = (0, 0)


class Watch:
    """Records the side effects of an input."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.home = scratch / "cwd"
        self.home.mkdir(exist_ok=True)
        os.chdir(self.home)
        self.output = os.open(scratch / "output", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(self.output, stream)
        self.seen: list[str] = []
        self.watching = False
        self.size = 0
        self.base = memory("VmRSS")
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in FORBIDDEN and "eomt_deploy" not in str(args[0]):  # our own kernels
            self.seen.append(f"{event} {str(args)[:200]}")
        opened = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if opened or event in CHANGING:
            self._writes(event, args[0])

    def _writes(self, event: str, path: object) -> None:
        try:
            place = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return
        if not place.startswith((f"{self.scratch}{os.sep}", os.devnull)):
            self.seen.append(f"{event} {place[:200]}")

    def start(self) -> None:
        self.seen.clear()
        self.size = os.fstat(self.output).st_size
        reset_peak()
        self.watching = True

    def stop(self) -> tuple[list[str], int]:
        """Forbidden side effects of the input, and its peak memory in bytes."""
        self.watching = False
        complaints = [f"it did {what}" for what in self.seen]
        sys.stdout.flush()
        sys.stderr.flush()
        size = os.fstat(self.output).st_size
        text = os.pread(self.output, max(0, size - self.size), self.size).decode(errors="replace")
        if size > self.size and (text := NOTICES.sub("", text).strip()):
            complaints.append(f"it wrote to the terminal: {text}")
        if left := list(self.home.iterdir()):
            complaints.append(f"it wrote {[p.name for p in left]} where it was started")
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return complaints, memory("VmHWM") - self.base


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes; the peak of the process if there is no such file."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def reset_peak() -> None:
    with suppress(OSError):  # not Linux, or not allowed: then the peak is that of all inputs so far
        Path("/proc/self/clear_refs").write_text("5")


def give_back_memory() -> None:
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def limit_memory() -> None:
    """Limit the memory, so that a bomb causes a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = memory("VmData") + ROOM
    if sys.platform == "linux" and (hard == resource.RLIM_INFINITY or wanted < hard):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def make_case(target: Any, seed: int, index: int) -> tuple[Files, list[str]]:
    """The hostile input with this number; the same in every process."""
    m = Mutator(Random(f"{target.name}:{seed}:{index}"))
    files = target.mutate(m)
    return files, m.steps


def place_files(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def describe(error: BaseException) -> tuple[str, str]:
    """The origin of an exception in one line, and its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{m[1]}:{f.name}" for f in frames if (m := OUR_FRAMES.search(f.filename))]
    deepest = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
    text = "".join(traceback.format_exception(error, limit=-12))
    return f"{type(error).__name__} at {ours[-1] if ours else '?'} ({deepest})", text[-3000:]


def message_problem(error: Exception) -> str:
    """Problem of an error message; empty if there is none."""
    try:
        text = str(error)
    except Exception as problem:
        return f"its text cannot be made: {problem!r}"
    if not text.strip():
        return "it says nothing"
    if "Traceback (most recent call last)" in text:
        return "its text has a traceback"
    if len(text) > LONGEST_MESSAGE:
        return f"its text is longer than {LONGEST_MESSAGE} characters"
    return ""


class Worker:
    """Runs chunks of inputs; see :func:`main` for the protocol."""

    def __init__(self, scratch: Path) -> None:
        os.environ["HOSTILE_SCRATCH"] = str(scratch)
        self.scratch = scratch
        self.answers = os.fdopen(os.dup(1), "w")
        place = os.open(scratch / "progress", os.O_RDWR | os.O_CREAT)
        os.truncate(place, 8)
        self.progress = mmap.mmap(place, 8)
        self.trace = (scratch / "trace").open("w")
        faulthandler.enable(self.trace)
        faulthandler.register(signal.SIGUSR1, self.trace)
        warnings.filterwarnings("always")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        self.watch = Watch(scratch)
        self.ready: set[str] = set()

    def at(self, index: int) -> None:
        self.progress[:] = struct.pack("<q", index)

    def chunk(self, target: Any, seed: int, first: int, count: int) -> Tally:
        tally = Tally(target.name)
        self.at(PREPARING)
        if target.name not in self.ready:
            self._check_valid(target, tally)
            self.ready.add(target.name)
        give_back_memory()
        self.watch.base = memory("VmRSS")
        limit_memory()
        started = time.perf_counter()
        for index in range(first, first + count):
            self.at(index)
            case = f"{target.name} --seed {seed} --first {index}"
            try:
                files, steps = make_case(target, seed, index)
            except Exception as error:
                cause, details = describe(error)
                self._fail(tally, f"a fault of the fuzzer itself: {cause}", case, [], details, {})
                continue
            self._examine(target, files, steps, case, tally)
        tally.seconds = time.perf_counter() - started
        return tally

    def _check_valid(self, target: Any, tally: Tally) -> None:
        """Check that the valid inputs are accepted; otherwise fuzzing them is useless."""
        for number, files in enumerate(target.valid()):
            for _ in range(2):  # the first run imports modules, which has side effects
                folder = self.scratch / "input"
                place_files(files, folder)
                try:
                    target.run(folder)
                except BaseException as error:
                    cause, details = describe(error)
                    self._fail(tally, f"valid input refused: {cause}", f"{target.name} {number}",
                               [],
                               details, files)  # fmt: skip
                    break

    def _examine(
        self, target: Any, files: Files, steps: list[str], case: str, tally: Tally
    ) -> None:
        from eomt_deploy.errors import EomtDeployError

        folder = self.scratch / "input"
        place_files(files, folder)
        refused = None
        problems: list[tuple[str, str]] = []
        self.watch.start()
        started = time.perf_counter()
        try:
            target.run(folder)
        except EomtDeployError as error:
            refused = type(error).__name__
            if problem := message_problem(error):
                cause, details = describe(error)
                problems.append((f"{problem}: {cause}", details))
        except BaseException as error:
            problems.append(describe(error))
            refused = ""
        seconds = time.perf_counter() - started
        complaints, peak = self.watch.stop()
        for complaint in complaints:
            cause = re.sub(r"/\S+/|0x[0-9a-f]+|\d+", "#", complaint)[:160]
            problems.append((cause, complaint))
        if peak > target.memory:
            problems.append((f"more than {target.memory >> 20} MiB", f"{peak / 1e6:.0f} MB"))
            give_back_memory()
        if seconds > SECONDS and not problems and self._slow_again(target, folder):
            problems.append((f"slower than {SECONDS:g} s", f"{seconds:.1f} s"))
        index = int(case.rsplit(" ", 1)[1])
        tally.inputs += 1
        tally.slowest = max(tally.slowest, (round(seconds, 3), index))
        tally.peak = max(tally.peak, (peak, index))
        if problems:
            for cause, details in problems:
                self._fail(tally, cause, f"{case} --count 1", steps, details, files)
        elif refused is None:
            tally.accepted += 1
        else:
            tally.refused[refused] = tally.refused.get(refused, 0) + 1

    def _slow_again(self, target: Any, folder: Path) -> bool:
        """Measure a slow input again, since the machine may have been busy."""
        started = time.perf_counter()
        with suppress(Exception):
            target.run(folder)
        return time.perf_counter() - started > SECONDS

    def _fail(
        self, tally: Tally, cause: str, case: str, steps: list[str], details: str, files: Files
    ) -> None:  # fmt: skip
        tally.causes[cause] = tally.causes.get(cause, 0) + 1
        if tally.causes[cause] <= SHOWN_PER_CAUSE:
            small = {n: c.hex() for n, c in files.items() if len(c) < 1 << 20}
            tally.failures.append(Failure(cause, case, steps, details, small))


def main(scratch: Path) -> None:
    """Read ``{"target", "seed", "first", "count"}`` line by line, and answer each with a tally."""
    from .targets import TARGETS

    worker = Worker(scratch)
    for line in sys.stdin:
        job = json.loads(line)
        tally = worker.chunk(TARGETS[job["target"]], job["seed"], job["first"], job["count"])
        worker.answers.write(json.dumps(asdict(tally)) + "\n")
        worker.answers.flush()
