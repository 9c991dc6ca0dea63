"""Files are written whole or not at all."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.errors import OutputError

if TYPE_CHECKING:
    from PIL import Image

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, for files that are renamed into place at the end.

    The same file system makes the rename atomic; whatever is left is removed.

    Raises:
        OutputError: the folder of ``target`` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".eomt-deploy-", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    with folder as name:
        yield Path(name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, or leave what was there.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device: there is nothing to replace
            path.write_bytes(content)
            return
        # A link keeps pointing at the file whose content changes.
        target = Path(os.path.realpath(path))
        with staging_folder(target) as folder:
            temporary = folder / "content"
            temporary.write_bytes(content)
            os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(path, error) from error


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its suffix.

    Raises:
        OutputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    try:
        picture.save(buffer, PICTURE_FORMATS[path.suffix.lower()], quality=92)
    except (OSError, ValueError) as error:  # JPEG ends at 65,500 pixels a side
        raise OutputError(
            f"A picture of {picture.width}x{picture.height} cannot be written as {path.name}: "
            f"{error}.",
            fix="Write a .png instead.",
        ) from error
    write_atomically(path, buffer.getvalue())


def check_writable(path: Path) -> None:
    """Fail early where a long job would fail late.

    Raises:
        OutputError: ``path`` is a folder, or its folder cannot be written.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder.", fix="Name the file inside it.")
        if path.exists() and not path.is_file():
            return
        folder = next(p for p in Path(os.path.abspath(path)).parents if p.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def cache_folder() -> Path:
    """The user's own folder for things that can be made again.

    Raises:
        OutputError: the user has no home folder, and no variable names another place.
    """
    try:
        if os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # Path.home()
        raise OutputError(
            "There is no cache folder: the user has no home folder.",
            fix="Set XDG_CACHE_HOME (Linux), HOME (macOS) or LOCALAPPDATA (Windows).",
        ) from error
    return base / "eomt-deploy"


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror}.",
        fix="Name a place that you may write to, with enough space.",
    )
