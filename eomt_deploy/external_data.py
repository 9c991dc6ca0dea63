"""Find the side files that contain the weights of an ``.onnx`` file, without reading the weights.

A model can name any file as its weights. Only names inside the model's folder are accepted, so
that a hostile model cannot read other files. The named file itself may be a link, as in the cache
of huggingface_hub, where every file is a link to a blob elsewhere.
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
from typing import TYPE_CHECKING

from eomt_deploy.errors import ModelFileError, OutputError
from eomt_deploy.files import cache_folder, staging_folder

if TYPE_CHECKING:
    import onnx

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5
"""Protobuf wire types, see https://protobuf.dev/programming-guides/encoding."""
MAX_DEPTH = 100
"""Maximum nesting of messages, as in protobuf itself."""

# Field numbers of onnx.proto that lead to tensors: message -> field number -> message.
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
"""Field number of `data_location` in a tensor, and its value for a side file."""
KEY, VALUE = 1, 2
"""Field numbers in an entry of a tensor's `external_data`."""

Bytes = bytes | mmap.mmap


class _DamagedError(Exception):
    """The file is not a protobuf message. The backend reports that later."""


Sides = dict[str, int]
"""Name of a side file -> its minimum size in bytes."""


def side_files(path: Path, *, complete: bool = True) -> tuple[Path, ...]:
    """The files with the weights of an ``.onnx`` file, sorted, without duplicates.

    Args:
        path: the ``.onnx`` file.
        complete: whether all files must exist. If False, missing files are left out.

    Raises:
        ModelFileError: a name leads outside the model's folder, or a file is missing or truncated.
    """
    found: Sides = {}
    with suppress(_DamagedError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _read(data, 0, len(data), "model", found, 0)
    for name in found:
        _check_name(path, name)
    sides = {path.parent / name: minimum for name, minimum in found.items()}
    if complete:
        for side, minimum in sides.items():
            _check_size(path, side, minimum)
    return tuple(sorted(side for side in sides if side.is_file()))


@contextmanager
def without_links(path: Path) -> Iterator[Path]:
    """A path at which a model and its side files are regular files, not symbolic links.

    OpenVINO resolves links before it checks whether a file is in the model's folder. If any file is
    a link, all files are hard-linked, or copied if that fails, into a temporary folder.
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
    """A temporary folder with the same files under the same relative names."""
    places = [Path(gettempdir())]
    with suppress(OutputError):
        places.insert(0, cache_folder())  # first: more often on the same disk
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
    raise ModelFileError(
        f"The weights of {files[0]} are links, which OpenVINO does not read, and they cannot be "
        "copied.",
        why=reason,
        fix="Copy the model with its weights into one folder (cp -L), or use "
        "--backend onnxruntime.",
    )


def _read(data: Bytes, start: int, end: int, kind: str, found: Sides, depth: int) -> None:
    """Collect the side files of a message and of the messages in it."""
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
        minimum = _number(entries, b"offset") + _number(entries, b"length")
        found[name] = max(found.get(name, 0), minimum)


def _number(entries: Mapping[bytes, bytes], key: bytes) -> int:
    text = entries.get(key, b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield each field as (number, start, end) in ``data``, or as (number, value, None)."""
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
            # A group has no length: it cannot be skipped without reading its content.
            raise ModelFileError(
                "The model contains a protobuf group, which ONNX does not use.",
                fix="Export the model again with `eomt-deploy export`.",
            )
        else:
            raise _DamagedError


def _varint(data: Bytes, start: int, end: int) -> tuple[int, int]:
    """Read a varint (seven bits per byte, lowest first): its value and the position after it."""
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
    """Refuse a side file whose name leads outside the model's folder."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    absolute = name.startswith(("/", "\\")) or PureWindowsPath(name).drive
    if absolute or ".." in parts or not parts or "\0" in name:
        raise ModelFileError(
            f"{model} names {name!r} as its weights file, which is not inside its folder.",
            why="A model must not read other files of this machine.",
            fix="Do not use this file unless you trust its source; export the checkpoint again.",
        )


def _check_size(model: Path, path: Path, minimum: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < minimum:
        raise ModelFileError(
            f"{path} is missing."
            if size is None
            else f"{path} is cut off: it has {size:,} of {minimum:,} bytes.",
            why=f"It contains weights of {model.name}.",
            fix="Copy both files again, or repeat the export.",
        )


def load_with_weights(path: Path) -> onnx.ModelProto:
    """Load an ``.onnx`` file with the weights in its side files.

    Raises:
        ModelFileError: it is damaged.
    """
    import onnx

    try:
        with without_links(path) as place:
            return onnx.load(place)
    except Exception as error:  # exceptions of protobuf and onnx have no common base class
        raise ModelFileError(
            f"{path} is not an ONNX model, or it is damaged.", fix="Export or copy it again."
        ) from error
