"""Atomic writes: a file is written completely or not at all.

Temporary files that a killed process left behind are removed by a later write.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_deploy import __version__
from eomt_deploy.errors import OutputError

fcntl: Any = None
with suppress(ImportError):  # Windows has none
    fcntl = import_module("fcntl")

if TYPE_CHECKING:
    from PIL import Image

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
JPEG_MAX_SIDE = 65_500
"""Maximum width and height of a JPEG in pixels (libjpeg)."""
GENERATOR = f"eomt-deploy {__version__}"
"""Written into every result, so that a later run recognises the file as ours."""

STAGING_PREFIX = ".eomt-deploy-"
STAGED_FILE = re.compile(re.escape(STAGING_PREFIX) + r"[0-9a-f]{16}\.part")
"""The exact name, since a file of the user can have a similar one."""
LOCK_NAME = ".lock"
"""Locked by the owner of a staging folder; the system unlocks it when the process ends."""
ABANDONED_SECONDS = 3600
"""On systems without file locks: age from which a temporary file counts as abandoned."""
BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it

JSON_LIMIT = 16 << 20
"""Maximum size of a JSON input in bytes; the parsed content needs far more memory."""


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Read JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, larger than ``limit`` bytes, or nested too deeply.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, for files that are renamed into place at the end.

    The rename is atomic, since both are on the same file system. The folder is removed at the end.
    Folders that killed processes left beside ``target`` are removed, too.

    Raises:
        OutputError: the folder of ``target`` is not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(os.path.abspath(target.parent))
        folder, lock = _locked_folder(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        yield folder
    finally:
        _empty(folder)
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new staging folder, and its lock file, open and locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
        lock = _locked_file(folder / LOCK_NAME)
        if lock is not None:
            return folder, lock


def _locked_file(path: Path) -> int | None:
    """A new file, open and locked; None if another process removed it, or its folder, first."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | BINARY, 0o666)
    except FileNotFoundError:
        return None
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    if path.exists():
        return descriptor
    os.close(descriptor)
    return None


@cache
def _remove_leftovers(parent: str) -> None:
    """Remove temporary files of killed processes from a folder; once per process and folder."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(STAGING_PREFIX):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        _remove_folder_if_abandoned(Path(entry.path))
                    elif STAGED_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        _remove_file_if_abandoned(Path(entry.path))


def _remove_folder_if_abandoned(folder: Path) -> None:
    path = folder / LOCK_NAME
    if not path.exists():
        folder.rmdir()  # only if it is empty: the owner was killed just before or after the lock
    elif _remove_file_if_abandoned(path, folder):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_file_if_abandoned(path: Path, folder: Path | None = None) -> bool:
    """Remove a file that no running process has locked, and first the other files in ``folder``.

    Returns:
        whether it was removed.
    """
    if fcntl is None:
        if folder is None and time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
            return False  # its owner may have closed it and be about to rename it
        path.unlink()  # fails while the owner has it open
        return True
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if _is_owned(lock):
            return False
        if folder is not None:
            _empty(folder)
        path.unlink()
        return True
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    """Remove everything except the lock file: without it, nobody may remove the other files."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK_NAME:
                path.unlink()


def _is_owned(lock: int) -> bool:
    """Whether a running process holds a lock file; if not, this process locks it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return time.time() - os.fstat(lock).st_mtime < ABANDONED_SECONDS
    return False


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write ``content`` (one part or several) to ``path``; an error leaves the old file unchanged.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [content] if isinstance(content, bytes) else content
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            with path.open("wb") as file:
                file.writelines(parts)
            return
        _write_and_rename(through_links(path), parts)
    except OSError as error:
        raise unwritable(path, error) from error


def _write_and_rename(target: Path, parts: Iterable[bytes]) -> None:
    """Write a locked file beside ``target`` and rename it; faster than a staging folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(os.path.abspath(target.parent))
    while True:
        temporary = target.with_name(f"{STAGING_PREFIX}{secrets.token_hex(8)}.part")
        descriptor = _locked_file(temporary)
        if descriptor is not None:
            break
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            if fcntl is not None:
                file.flush()
                os.replace(temporary, target)  # while it is locked
        if fcntl is None:  # Windows cannot rename an open file
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def through_links(path: Path) -> Path:
    """The target of a symbolic link, so that writing to it keeps the link; else ``path``."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write an image in the format of the suffix of ``path``, marked as ours.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, encode_picture(picture, path))


def overlay_suffix(picture: Image.Image) -> str:
    """``.jpg``, or ``.png`` for an image that is too large for a JPEG."""
    return ".jpg" if max(picture.size) <= JPEG_MAX_SIDE else ".png"


def encode_picture(picture: Image.Image, path: Path) -> bytes:
    """Encode an image in the format of the suffix of ``path``.

    Raises:
        OutputError: the image is too large for the format.
    """
    from PIL.PngImagePlugin import PngInfo

    kind = PICTURE_FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"quality": 92, "comment": GENERATOR.encode()}
    if kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_text("Software", GENERATOR)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, kind, **options)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"An image of {picture.width}x{picture.height} pixels cannot be written as "
            f"{path.name}: {error}.",
            why=f"The maximum width and height of a JPEG is {JPEG_MAX_SIDE} pixels.",
            fix=f"Write a PNG: {path.with_suffix('.png').name}.",
        ) from error
    return buffer.getvalue()


def check_writable(path: Path) -> None:
    """Check that a file can be written, so that a long job does not fail at its end.

    Raises:
        OutputError: ``path`` is a folder, or its folder is not writable.
    """
    try:
        if path.is_dir():
            raise OutputError(
                f"{path} is a folder, not a file.", fix="Pass the path of a file inside it."
            )
        if path.exists() and not path.is_file():
            return
        folder = next(p for p in Path(os.path.abspath(path)).parents if p.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def cache_folder() -> Path:
    """The user's cache folder.

    Raises:
        OutputError: the user has no home folder, and no environment variable sets another folder.
    """
    if _cache_folders:
        return _cache_folders[-1]
    try:
        from platformdirs import user_cache_path
    except ImportError as error:  # benchmarks also run with only PyTorch installed
        raise OutputError(
            "There is no cache folder: platformdirs is not installed.",
            fix="pip install platformdirs",
        ) from error
    try:
        return user_cache_path("eomt-deploy", appauthor=False, opinion=False)
    except RuntimeError as error:
        raise OutputError(
            "There is no cache folder: the user has no home folder.",
            fix="Set XDG_CACHE_HOME (Linux), HOME (macOS) or LOCALAPPDATA (Windows).",
        ) from error


_cache_folders: list[Path] = []


@contextmanager
def temporary_cache(folder: Path) -> Iterator[None]:
    """Use another cache folder inside a ``with`` block."""
    _cache_folders.append(folder)
    try:
        yield
    finally:
        _cache_folders.remove(folder)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a file that cannot be written."""
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.",
        fix="Choose a writable folder with enough free space.",
    )
