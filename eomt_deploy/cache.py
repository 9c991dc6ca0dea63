"""The user's cache folder: files that can be recomputed, kept for the next start.

Every file that we write there has a header with a SHA-256 over its name and content; a file that is
damaged, truncated or renamed is never used. Files appear complete under their final name, so that
several processes can use the folder at once. When the cache exceeds its limit, the least recently
used files are removed.
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
"""In bytes. EoMT-L compiled by OpenVINO takes 1.3 GB. Downloads do not count."""

MAGIC = b"eomt-deploy cache 1 "
BLOCK_BYTES = 1 << 20
HEADER_BYTES = 128
"""A multiple of 64, so that weights in a memory-mapped file stay aligned."""

FILES = {
    ("openvino", ".blob"): "models compiled by OpenVINO",
    ("kernels", ".cubin"): "CUDA kernels",
    ("aotinductor", ".way"): "packages that ran on a GPU",
    ("onnxruntime-web", ".js"): "scripts of ONNX Runtime Web",
    ("onnxruntime-web", ".wasm"): "ONNX Runtime Web",
    ("", ".jit"): "kernels of TensorRT-RTX",
    ("", ".timing"): "timings of TensorRT",
}
"""Description of the files that we write, by (folder, suffix)."""
FOLDERS = {
    "matplotlib": "matplotlib's list of fonts",
    "torchinductor": "code compiled by PyTorch",
}
"""Description of the folders that other libraries write to."""
DOWNLOADS, DOWNLOAD_KIND = "checkpoints", "downloaded checkpoints"
UNFINISHED, UNFINISHED_KIND = ".eomt-deploy-", "unfinished files"
"""Prefix of the temporary folders of `files.staging_folder`, and how they are listed."""
IN_USE_SECONDS = 3600
"""A folder of another library that changed more recently may be in use; it is not removed to save
space."""


@dataclass(frozen=True)
class Entry:
    """One file, or one folder of another library, in the cache.

    Attributes:
        path: file or folder.
        kind: description, e.g. ``CUDA kernels``.
        bytes: size; of a folder, the size of all files in it.
        used: time of the last use, in seconds since 1970.
        files: number of files.
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
    """The content of a file that :func:`store` wrote, memory-mapped instead of copied.

    Returns:
        the bytes, writable without changing the file; None if the file is missing, cannot be read,
        is damaged, or was written under another name.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            return None
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    content = mapped[HEADER_BYTES:]
    if header != _header(path, [content]):
        return None
    with suppress(OSError):  # read-only file system
        os.utime(path)  # the time of the last use
    return content


def store(path: Path, write: Callable[[io.BytesIO], object], *, estimate: int = 0) -> None:
    """Write a file into the cache, completely or not at all, and keep the cache within its limit.

    Args:
        path: file in the cache folder; its name must identify everything that the content depends
            on.
        write: function that writes the content into the file object that it receives.
        estimate: expected size in bytes, if known; a file above the limit is not written.

    Raises:
        OutputError: the file cannot be written, or exceeds the limit of the cache.
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
                # Not memory-mapped: mapped pages would count as memory of this process.
                header = _header(path, iter(partial(file.read, BLOCK_BYTES), b""))
                file.seek(0)
                file.write(header)
            _check_size(path, size, limit)
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}.",
            fix="Set XDG_CACHE_HOME to a writable folder with enough free space.",
        ) from error
    trim(limit, keep=path)


def trim(limit: int, *, keep: Path | None = None) -> None:
    """Remove the least recently used entries until the rest is within ``limit`` bytes.

    Downloads are kept and do not count, since the user requested them.

    Args:
        limit: maximum size in bytes.
        keep: file that is never removed.
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
    """Entries of the cache folder, without links and files that are not ours.

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
    """Files and links in the cache folder that are not ours; they are never removed."""
    ours = [entry.path for entry in entries()]
    files = set(ours)
    folders = {path for path in ours if path.is_dir()}
    return [
        path
        for path in _walk(cache_folder())
        if path not in files and not folders.intersection(path.parents)
    ]


def remove(entry: Entry) -> None:
    """Remove an entry. Links inside a folder are removed, but not their targets.

    Raises:
        OSError: the entry cannot be removed.
    """
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
        return
    entry.path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty
        if entry.path.parent != cache_folder():
            entry.path.parent.rmdir()


def keep_files_of_torch() -> None:
    """Let PyTorch's compiler keep its files in our cache folder, unless the user chose a folder.

    Its default is in the system's temporary folder, where the files are never removed.
    """
    with suppress(OSError, OutputError):  # without a cache folder PyTorch keeps its default
        folder = cache_folder() / "torchinductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def import_matplotlib() -> None:
    """Import matplotlib so that it and the font tools keep their font lists in our cache folder.

    Its settings come from the same folder, so our figures do not depend on the user's settings.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        import matplotlib.font_manager

        return
    try:
        folder = str(cache_folder() / "matplotlib")
    except OutputError:  # then matplotlib uses a temporary folder
        folder = os.devnull
    with _environment(MPLCONFIGDIR=folder, XDG_CACHE_HOME=folder):
        import matplotlib.font_manager  # noqa: F401  (writes the list of fonts)


class _Sink(io.BytesIO):
    """A ``BytesIO`` that writes to a file, after the header.

    OpenVINO accepts only a ``BytesIO``, and seeks back to fill in earlier values. It also swallows
    the exception of a failed write, so the exception is kept in ``error``.
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
    """Header of a file: a magic string and the SHA-256 of its name and content."""
    digest = hashlib.sha256(path.name.encode() + b"\n")
    for block in content:
        digest.update(block)
    return (MAGIC + digest.hexdigest().encode()).ljust(HEADER_BYTES - 1) + b"\n"


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise OutputError(
            f"{path.name} has {size / 1e6:.0f} MB, but the limit of the cache is "
            f"{limit / 1e6:.0f} MB.",
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
    """Whether a path is a folder and not a link to one; the cache folder itself may be a link."""
    return folder.is_dir() and (folder == cache_folder() or not folder.is_symlink())


def _children(folder: Path) -> list[Path]:
    """Direct entries of a folder, sorted, without links."""
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
    """Yield files and links below a folder, without following links."""
    for root, folders, files in os.walk(folder):
        for name in sorted(folders):
            if (path := Path(root, name)).is_symlink():
                yield path
        for name in sorted(files):
            yield Path(root, name)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables inside a ``with`` block."""
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
