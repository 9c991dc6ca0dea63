"""What can be made again, kept in the user's cache folder for the next start.

Every file that we write there has a header with a SHA-256 over its name and content: a file that is
damaged, cut off or of another name is never used. Files appear complete, under their final name, so
that several processes may use the folder at once. When they exceed a limit, those that were not
used for the longest time are removed.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from eomt_deploy.errors import OutputError
from eomt_deploy.files import cache_folder, staging_folder
from eomt_deploy.units import parse_bytes

LIMIT = "EOMT_DEPLOY_CACHE_LIMIT"
"""Environment variable with the maximum size of the cache, e.g. 500MiB; 0 keeps nothing."""
DEFAULT_LIMIT = 4 << 30
"""Bytes; EoMT-L compiled by OpenVINO takes 1.3 GB. Downloads do not count."""

MAGIC = b"eomt-deploy cache 1 "
BLOCK_BYTES = 1 << 20
HEADER_BYTES = 128
"""A multiple of 64, so that weights in a mapped file stay aligned."""

FILES = {
    ("openvino", ".blob"): "models compiled by OpenVINO",
    ("kernels", ".cubin"): "CUDA kernels",
    ("", ".jit"): "kernels of TensorRT-RTX",
    ("", ".timing"): "timings of TensorRT",
}
"""What we write, by folder and suffix."""
FOLDERS = {
    "matplotlib": "fonts that matplotlib found",
    "torchinductor": "code compiled by PyTorch",
}
"""What other libraries write into folders that we give them."""
DOWNLOADS, DOWNLOAD_KIND = "checkpoints", "downloaded checkpoints"
UNFINISHED, UNFINISHED_KIND = ".eomt-deploy-", "unfinished files"
"""Folders that a process writes into before it renames the result, see `files.staging_folder`."""
IN_USE_SECONDS = 3600
"""A folder of another library that changed since then may be in use, and is not removed to save
space."""


@dataclass(frozen=True)
class Entry:
    """One file, or one folder of another library, in the cache.

    Attributes:
        path: where it is.
        kind: what it is, in words.
        bytes: its size, of a folder with all that is in it.
        used: when it was last used, in seconds since 1970.
        files: how many files it is.
    """

    path: Path
    kind: str
    bytes: int
    used: float
    files: int = 1


def size_limit() -> int:
    """Maximum size of the cache in bytes.

    Raises:
        UsageError: the environment variable is not a size.
    """
    text = os.environ.get(LIMIT)
    return parse_bytes(text) if text else DEFAULT_LIMIT


def load(path: Path) -> memoryview | None:
    """The content of a file that :func:`store` wrote, mapped and not copied.

    Returns:
        the bytes, writable without changing the file; None for a file that is not there, cannot be
        read, is damaged, or was written under another name.
    """
    try:
        if not path.is_file():  # a pipe would wait for somebody to write
            return None
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    content = mapped[HEADER_BYTES:]
    if header != _header(path, [content]):
        return None
    with suppress(OSError):  # a file system that cannot be written
        os.utime(path)  # used now
    return content


def store(path: Path, write: Callable[[io.BytesIO], object], *, estimate: int = 0) -> None:
    """Write a file into the cache, completely or not at all, and keep the cache within its limit.

    Args:
        path: file in the cache folder; its name must say everything that its content depends on.
        write: writes the content into the file that it gets.
        estimate: bytes that the content will have, if known: what exceeds the limit is not written.

    Raises:
        OutputError: it cannot be written, or is larger than the cache may be.
        UsageError: the environment variable for the limit is not a size.
    """
    limit = size_limit()
    _check_size(path, estimate, limit)
    try:
        with staging_folder(path) as folder:
            temporary = folder / "content"
            with temporary.open("w+b") as file:
                sink = _Sink(file)
                write(sink)
                if sink.error is not None:
                    raise sink.error
                size = file.seek(0, os.SEEK_END)
                file.seek(HEADER_BYTES)
                # Read, since mapped pages would count as memory of this process.
                header = _header(path, iter(partial(file.read, BLOCK_BYTES), b""))
                file.seek(0)
                file.write(header)
            _check_size(path, size, limit)
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}.",
            fix="Set XDG_CACHE_HOME to a folder that you may write to, with enough space.",
        ) from error
    trim(limit, keep=path)


def trim(limit: int, *, keep: Path | None = None) -> None:
    """Remove what was not used for the longest time, until the rest is within ``limit`` bytes.

    Args:
        keep: stays in any case. Downloads stay and do not count, since the user asked for them.
    """
    found = [e for e in entries() if e.kind not in (DOWNLOAD_KIND, UNFINISHED_KIND)]
    excess = sum(entry.bytes for entry in found) - limit
    recent = time.time() - IN_USE_SECONDS
    for entry in sorted(found, key=lambda entry: entry.used):
        in_use = entry.kind in FOLDERS.values() and entry.used > recent
        if excess > 0 and entry.path != keep and not in_use:
            with suppress(OSError):
                remove(entry)
                excess -= entry.bytes


def entries() -> list[Entry]:
    """What we know in the cache folder. Links, and files that are not ours, are not among it.

    Raises:
        OutputError: the user has no cache folder.
    """
    root = cache_folder()
    found = [_file(path, DOWNLOAD_KIND) for path in _files_below(root / DOWNLOADS)]
    found += [_folder(root / name, kind) for name, kind in FOLDERS.items() if _is_real(root / name)]
    for folder in {root / name for name, _ in FILES}:
        for path in _children(folder):
            kind = FILES.get(("" if folder == root else folder.name, path.suffix))
            if path.name.startswith(UNFINISHED) and path.is_dir():
                found.append(_folder(path, UNFINISHED_KIND))
            elif kind is not None:
                found.append(_file(path, kind))
    return [entry for entry in found if entry is not None]


def unknown_files() -> list[Path]:
    """Files and links in the cache folder that are not ours: they are never removed."""
    ours = [entry.path for entry in entries()]
    files = set(ours)
    folders = {path for path in ours if path.is_dir()}
    return [
        path
        for path in _walk(cache_folder())
        if path not in files and not folders.intersection(path.parents)
    ]


def remove(entry: Entry) -> None:
    """Remove an entry; of a link in it, the link and not what it points to.

    Raises:
        OSError: it cannot be removed.
    """
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
        return
    entry.path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder may have other files
        if entry.path.parent != cache_folder():
            entry.path.parent.rmdir()


def keep_files_of_torch() -> None:
    """Let PyTorch's compiler keep its files in our cache folder, unless the user chose a folder.

    Its own choice is a folder in the system's temporary folder that is never emptied.
    """
    with suppress(OSError, OutputError):  # without a cache folder it keeps its own choice
        folder = cache_folder() / "torchinductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def import_matplotlib() -> None:
    """Import matplotlib with its list of fonts, and the font tools' own, in our cache folder.

    Its settings come from the same folder: our figures do not depend on the user's.

    Raises:
        ImportError: it is not installed.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        import matplotlib.font_manager

        return
    try:
        folder = str(cache_folder() / "matplotlib")
    except OutputError:  # it takes a temporary folder, then
        folder = os.devnull
    with _environment(MPLCONFIGDIR=folder, XDG_CACHE_HOME=folder):
        import matplotlib.font_manager  # noqa: F401  it makes the list


class _Sink(io.BytesIO):
    """Passes on what is written to a file, behind the header.

    OpenVINO only takes a ``BytesIO``, goes back to fill in what it knows later, and hides an
    exception of a write: it is kept in ``error``.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._file.seek(HEADER_BYTES)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    def tell(self) -> int:
        return self._try(self._file.tell) - HEADER_BYTES

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = HEADER_BYTES if whence == os.SEEK_SET else 0
        return self._try(lambda: self._file.seek(start + offset, whence)) - HEADER_BYTES

    def _try(self, call: Callable[[], int]) -> int:
        if self.error is None:
            try:
                return call()
            except OSError as error:
                self.error = error
        return HEADER_BYTES


def _header(path: Path, content: Iterable[bytes | memoryview]) -> bytes:
    """First bytes of a file: that it is ours, and a hash of its name and content."""
    digest = hashlib.sha256(path.name.encode() + b"\n")
    for block in content:
        digest.update(block)
    return (MAGIC + digest.hexdigest().encode()).ljust(HEADER_BYTES - 1) + b"\n"


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise OutputError(
            f"{path.name} has {size / 1e6:.0f} MB, more than the cache may have "
            f"({limit / 1e6:.0f} MB).",
            fix=f"Set {LIMIT}, e.g. to {-(-2 * size // 2**30)}GiB.",
        )


def _file(path: Path, kind: str) -> Entry | None:
    try:
        facts = path.stat(follow_symlinks=False)
    except OSError:  # another process removed it
        return None
    return Entry(path, kind, facts.st_size, facts.st_mtime) if path.is_file() else None


def _folder(path: Path, kind: str) -> Entry:
    files = [entry for file in _files_below(path) if (entry := _file(file, kind)) is not None]
    used = max((file.used for file in files), default=0.0)
    return Entry(path, kind, sum(file.bytes for file in files), used, len(files))


def _is_real(folder: Path) -> bool:
    """Whether it is a folder, and not a link to one; the cache folder itself may be a link."""
    return folder.is_dir() and (folder == cache_folder() or not folder.is_symlink())


def _children(folder: Path) -> list[Path]:
    """What is directly in a folder, sorted, without links."""
    if not _is_real(folder):
        return []
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.is_symlink())
    return []


def _files_below(folder: Path) -> list[Path]:
    if not _is_real(folder):
        return []
    return [path for path in _walk(folder) if not path.is_symlink()]


def _walk(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, without following links."""
    for root, folders, files in os.walk(folder):
        for name in sorted(folders):
            if (path := Path(root, name)).is_symlink():
                yield path
        for name in sorted(files):
            yield Path(root, name)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that are set meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
