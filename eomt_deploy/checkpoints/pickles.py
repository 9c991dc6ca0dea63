"""Check of pickles before they are loaded.

PyTorch's weights-only reader does not run code from a file, but it builds the objects that the file
describes: tuples nested so deeply that hashing one overflows the stack, or gigabytes of zeros from
a few bytes.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from eomt_deploy.archives import check_zip_sizes

MAX_NESTING = 100
"""Maximum nesting depth; a checkpoint with settings and optimiser has about 10 levels."""
MAX_PICKLE = 256 << 20
"""Maximum bytes of the pickle in an archive (without weights): hundreds of times a large one."""
LEGACY_PICKLES = 5
"""Number of pickles before the weights: magic number, protocol, system, content and keys."""
_MUTATORS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


class HostileError(ValueError):
    """A file has content that trainers do not write."""


def check_torch_file(path: Path) -> None:
    """Check a file of ``torch.save`` before it is loaded.

    Raises:
        ValueError: entries are compressed or larger than the file, or a pickle is hostile.
        zipfile.BadZipFile: the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _check_pickles(file, LEGACY_PICKLES)
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # torch.load maps the stored bytes as weights, so compressed ones would be noise.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise HostileError(
                    f"its entry {entry.filename[:80]!r} is compressed, but torch.save does not "
                    "compress"
                )
        check_zip_sizes(archive, path.stat().st_size)
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise HostileError(
                        f"its data.pkl has {entry.file_size:,} bytes, the maximum is {MAX_PICKLE:,}"
                    )
                _check_pickles(io.BytesIO(archive.read(entry)), 1)


def _check_pickles(file: BinaryIO, count: int) -> None:
    for _ in range(count):
        try:
            _check_pickle(file)
        except HostileError:
            raise
        except Exception:  # not a pickle, or damaged: the error of the reader is clearer
            return


def _check_pickle(file: BinaryIO) -> None:
    """Track the nesting depth of the values.

    Raises:
        HostileError: values are nested too deeply, or can take any amount of memory.
    """
    stack: list[list[int] | None] = []  # mutable depths; None is a mark
    memo: dict[object, list[int]] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise HostileError("it creates a bytearray, which can have any size")
        if name == "MARK":
            stack.append(None)
        elif "PUT" in name or name == "MEMOIZE":
            if stack and (top := stack[-1]) is not None:
                memo[len(memo) if argument is None else argument] = top
        elif "GET" in name:
            stack.append(memo.get(argument, [0]))
        else:
            taken = _take(stack, opcode)
            depth = 1 + max((cell[0] for cell in taken), default=0)
            if name in _MUTATORS and taken:
                first = taken[0]
                first[0] = max(first[0], 1 + max((cell[0] for cell in taken[1:]), default=0))
                depth = first[0]
                stack.append(first)
            else:
                stack.extend([depth] for _ in opcode.stack_after)
            if depth > MAX_NESTING:
                raise HostileError(f"its values are nested more than {MAX_NESTING} levels deep")


def _take(stack: list[list[int] | None], opcode: pickletools.OpcodeInfo) -> list[list[int]]:
    """Pop the arguments of an opcode; the deepest in the stack comes first."""
    before = opcode.stack_before
    taken: list[list[int]] = []
    count = len(before)
    if pickletools.markobject in before:
        count = before.index(pickletools.markobject)
        while stack and (cell := stack.pop()) is not None:
            taken.append(cell)
    for _ in range(count):
        if stack and (cell := stack.pop()) is not None:
            taken.append(cell)
    return taken[::-1]
