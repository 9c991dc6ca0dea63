"""Folders on this machine and in object stores: read, list, and write files at once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from eomt_deploy.addresses import is_address
from eomt_deploy.errors import (
    ImageError,
    MissingDependencyError,
    OutputError,
    UsageError,
    first_line,
)
from eomt_deploy.files import write_atomically

FILE_PREFIX = "file://"
WITHOUT_FOLDERS = ("s3", "gcs", "abfs")
"""Object stores of pyarrow: creating a folder there writes an empty object."""


def is_remote(text: str) -> bool:
    """Whether a text is a URI of another file system, e.g. ``s3://bucket/key``."""
    scheme, separator, _ = text.partition("://")
    known = bool(separator) and scheme.replace("+", "").isalnum()
    return known and not is_address(text) and scheme.lower() != "file"


def as_local(text: str) -> str:
    """The path of a ``file://`` URI; other text stays unchanged."""
    if not text.lower().startswith(FILE_PREFIX):
        return text
    return unquote(text[len(FILE_PREFIX) :])


def _parts(uri: str) -> tuple[str, str]:
    """The root of the file system of a URI, and the path below it."""
    scheme, _, rest = uri.partition("://")
    authority, _, key = rest.partition("/")
    return f"{scheme}://{authority}/", key


@cache
def _file_system(root: str) -> tuple[Any, str]:
    """The pyarrow file system of ``scheme://authority/``, and its path there."""
    from pyarrow import ArrowInvalid, fs

    try:
        with suppress(ArrowInvalid):  # a scheme that pyarrow does not know
            system, base = fs.FileSystem.from_uri(root)
            return system, base.rstrip("/")
        import fsspec  # type: ignore[import-untyped]

        system, base = fsspec.core.url_to_fs(root)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), base.rstrip("/")
    except ImportError as error:
        raise MissingDependencyError(
            f"{root} needs a package that is not installed: {error}.",
            fix="Install the fsspec package of this storage, e.g. pip install s3fs.",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The storage {root} cannot be used: {error}.",
            fix="Check the address, and the credentials in the environment.",
        ) from error


def file_system(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI, and the path of the URI there.

    Raises:
        UsageError: there is no file system for it, or it cannot be reached.
        MissingDependencyError: its package is not installed.
    """
    root, key = _parts(uri)
    system, base = _file_system(root)
    return system, f"{base}/{key}" if base or root.endswith(":///") else key


def read_image_bytes(uri: str, limit: int) -> bytes:
    """The content of an image in another file system, at most ``limit`` bytes.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        system, path = file_system(uri)
        with system.open_input_stream(path) as stream:
            content: bytes = stream.read(limit)
        return content
    except FileNotFoundError as error:
        raise ImageError(f"There is no image at {uri}.", fix="Check the path.") from error
    except Exception as error:  # each storage has its own exceptions
        reason = first_line(error)
        raise ImageError(
            f"{uri} cannot be read: {reason}.", fix="Check that the file can be opened."
        ) from error


@dataclass(frozen=True)
class Place:
    """A folder, local or in an object store. Files in it appear complete or not at all.

    Attributes:
        root: absolute path, or URI without a slash at the end.
    """

    root: str

    @classmethod
    def of(cls, text: str) -> Place:
        """The folder at a path or URI."""
        if is_remote(text):
            return cls(text.rstrip("/"))
        return cls(os.path.abspath(as_local(text)))

    @property
    def remote(self) -> bool:
        return is_remote(self.root)

    def path(self, name: str) -> str:
        """The path or URI of a file in it; ``name`` is relative, with slashes."""
        return f"{self.root}/{name}" if self.remote else str(Path(self.root) / name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once, or replace it.

        A local file is renamed into place. An object store shows an object only after its upload
        was completed.

        Raises:
            OutputError: the file cannot be written.
        """
        if not self.remote:
            write_atomically(Path(self.path(name)), content)
            return
        system, path = file_system(self.path(name))
        try:
            if system.type_name not in WITHOUT_FOLDERS:
                system.create_dir(path.rpartition("/")[0], recursive=True)
            with system.open_output_stream(path) as stream:
                stream.write(content)
        except Exception as error:  # each storage has its own exceptions
            raise OutputError(
                f"{self.path(name)} cannot be written: {error}.",
                fix="Check the address, and that the credentials allow writing.",
            ) from error

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        system, path = self._at(name)
        try:
            with system.open_input_stream(path) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        return content

    def open(self, name: str) -> Any:
        """A file for reading at any position; the caller closes it."""
        system, path = self._at(name)
        return system.open_input_file(path)

    def names(self, folder: str = "") -> list[str]:
        """Names of all files below a subfolder, relative to it, sorted."""
        from pyarrow import fs

        system, path = self._at(folder)
        path = path.rstrip("/")
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        start = len(path) + 1
        found = system.get_file_info(selector)
        return sorted(info.path[start:] for info in found if info.type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """Remove a file."""
        system, path = self._at(name)
        system.delete_file(path)

    def _at(self, name: str) -> tuple[Any, str]:
        if self.remote:
            return file_system(self.path(name))
        from pyarrow import fs

        return fs.LocalFileSystem(), self.path(name)
