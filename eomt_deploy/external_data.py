"""Weights that an ``.onnx`` file keeps in files beside it, found without reading the weights.

A model may name any file as its weights. We only follow names inside the model's own folder, so
that a hostile model cannot read other files; the name itself may be a link, as in the cache of
huggingface_hub, where every file is a link to a blob elsewhere.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import gettempdir

from eomt_deploy.errors import ArtifactError, OutputError
from eomt_deploy.files import cache_folder, staging_folder

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5
"""How protobuf stores a field, see https://protobuf.dev/programming-guides/encoding."""
MAX_DEPTH = 100
"""Protobuf's own limit on messages in messages."""

# Field numbers of onnx.proto: where messages are that may have a tensor.
CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
DATA_LOCATION, EXTERNAL = 14, 1
"""Of a tensor: the field that says where its values are, and its value for a side file."""
KEY, VALUE = 1, 2
"""Fields of an entry of a tensor's `external_data`."""

Bytes = bytes | mmap.mmap


class _DamagedError(Exception):
    """Not a protobuf message: the backend will say so."""


Sides = dict[str, int]
"""Name of a side file -> the bytes that it must have at least."""


def side_files(path: Path, *, complete: bool = True) -> tuple[Path, ...]:
    """The files that hold weights of an ``.onnx`` file, sorted, once each.

    Args:
        complete: whether they must be there. If not, those that are not there are left out.

    Raises:
        ArtifactError: a name leads outside the model's folder; or a file is missing or cut off.
    """
    found: Sides = {}
    with suppress(_DamagedError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _read(data, 0, len(data), "model", found, 0)
    for name in found:
        _check_name(path, name)
    sides = {path.parent / name: least for name, least in found.items()}
    if complete:
        for side, least in sides.items():
            _check_size(path, side, least)
    return tuple(sorted(side for side in sides if side.is_file()))


@contextmanager
def without_links(path: Path) -> Iterator[Path]:
    """A path at which a model and its side files are no links.

    OpenVINO follows a link before it looks whether a file is in the model's folder. So files that
    are links are linked by a second name (a hard link), or else copied, into a temporary folder.
    """
    sides = side_files(path)
    if not any(map(_through_link, sides)):
        yield path
        return
    with _second_names([path, *sides], path.parent) as folder:
        yield folder / path.name


def _through_link(path: Path) -> bool:
    return Path(os.path.realpath(path)) != Path(os.path.realpath(path.parent)) / path.name


@contextmanager
def _second_names(files: list[Path], root: Path) -> Iterator[Path]:
    """A folder with the same files under the same relative names."""
    places = [Path(gettempdir())]
    with suppress(OutputError):
        places.insert(0, cache_folder())  # more often on the same disk
    reason = ""
    actions: tuple[Callable[[str, Path], object], ...] = (os.link, shutil.copyfile)
    for make, place in product(actions, places):
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(staging_folder(place / "model"))
                for file in files:
                    target = folder / file.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    make(os.path.realpath(file), target)
            except OutputError as error:
                reason = error.what
                continue
            except OSError as error:
                reason = str(error)
                continue
            yield folder
            return
    raise ArtifactError(
        f"The weights of {files[0]} are links, and cannot be copied for OpenVINO.",
        why=reason,
        fix="Copy the model with its weights into one folder (cp -L), or use "
        "--backend onnxruntime.",
    )


def _read(data: Bytes, start: int, end: int, kind: str, found: Sides, depth: int) -> None:
    """Collect the side files of a message and of those inside."""
    if depth > MAX_DEPTH:
        raise _DamagedError
    children = CHILDREN[kind]
    entries: dict[bytes, bytes] = {}
    external = False
    for number, first, last in _fields(data, start, end):
        child = children.get(number)
        if kind == "tensor" and number == DATA_LOCATION:
            external = last is None and first == EXTERNAL
        elif child == "entry" and last is not None:
            entry = {n: data[a:b] for n, a, b in _fields(data, first, last) if b is not None}
            entries[entry.get(KEY, b"")] = entry.get(VALUE, b"")
        elif child is not None and last is not None:
            _read(data, first, last, child, found, depth + 1)
    if external:
        name = entries.get(b"location", b"").decode(errors="surrogateescape")
        least = _number(entries, b"offset") + _number(entries, b"length")
        found[name] = max(found.get(name, 0), least)


def _number(entries: Mapping[bytes, bytes], key: bytes) -> int:
    text = entries.get(key, b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Number and content of each field: (start, end) in ``data``, or (value, None)."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, start = _varint(data, start, end)
            yield number, value, None
        elif kind == LENGTH:
            length, start = _varint(data, start, end)
            if length > end - start:
                raise _DamagedError
            yield number, start, start + length
            start += length
        elif kind in (FIXED32, FIXED64):
            start += 4 if kind == FIXED32 else 8
        elif kind in (GROUP, GROUP_END):
            # What is in a group cannot be skipped without reading it, and nobody writes any.
            raise ArtifactError("The model has a protobuf group, which ONNX does not know.")
        else:
            raise _DamagedError


def _varint(data: Bytes, start: int, end: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first, until one lacks the eighth bit."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise _DamagedError


def _check_name(model: Path, name: str) -> None:
    """A side file must be below the model's folder by its name."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    absolute = name.startswith(("/", "\\")) or PureWindowsPath(name).drive
    if absolute or ".." in parts or not parts or "\0" in name:
        raise ArtifactError(
            f"{model} names {name!r} as the file of its weights, which is not inside its folder.",
            why="A model must not read other files of this machine.",
            fix="Do not use this file unless you know who made it; export the checkpoint again.",
        )


def _check_size(model: Path, path: Path, least: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < least:
        raise ArtifactError(
            f"{path} is missing."
            if size is None
            else f"{path} is cut off: it has {size:,} of {least:,} bytes.",
            why=f"It holds weights of {model.name}.",
            fix="Copy both files together, or export again.",
        )
