"""Files of a data set, from folders and from the official zip files as they are downloaded."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from eomt_deploy.errors import DatasetError
from eomt_deploy.sources import IMAGE_SUFFIXES, RgbImage, decode_image

READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)
"""What reading a damaged, encrypted or oddly packed file raises."""
DATA_SUFFIXES = IMAGE_SUFFIXES | {".json"}


class _Entry(NamedTuple):
    source: Path | zipfile.ZipFile
    member: str
    owner: str


class FileIndex:
    """Every file below some folders and zip files, by its relative POSIX name.

    Zip files that lie at the top of a folder are opened, too; what macOS leaves is not seen.

    Raises:
        DatasetError: a path that is not there, is no folder or zip, or is a damaged zip; or two
            paths that hold different files of one name.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._files: dict[str, _Entry] = {}
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._add_zip(path, str(path), str(path))
            else:
                raise DatasetError(f"There are no data at {path}.")

    @property
    def origin(self) -> str:
        return ", ".join(str(path) for path in self.paths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names, sizes and times or checksums: other data, other fingerprint."""
        digest = hashlib.sha256()
        for name in self.names:
            source, member, _ = self._files[name]
            if isinstance(source, zipfile.ZipFile):
                info = source.getinfo(member)
                facts = (info.file_size, info.CRC)
            else:
                stat = (source / member).stat()
                facts = (stat.st_size, stat.st_mtime_ns)
            digest.update(f"{name}\0{facts}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def matching(self, pattern: str) -> list[str]:
        """Names in which the regular expression is found, sorted."""
        search = re.compile(pattern).search
        return [name for name in self.names if search(name)]

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            DatasetError: it cannot be read.
        """
        source, member, _ = self._files[name]
        try:
            if isinstance(source, zipfile.ZipFile):
                return source.read(member)
            return (source / member).read_bytes()
        except READ_ERRORS as error:
            raise DatasetError(
                f"{self.describe(name)} cannot be read: {error}.",
                fix="If it lies in a zip, unpack that yourself and pass the folder.",
            ) from error

    def image(self, name: str) -> RgbImage:
        """Pixels of an image file, uint8 RGB."""
        return decode_image(self.read(name), self.describe(name))

    def describe(self, name: str) -> str:
        """The file's full place, for messages."""
        if name not in self._files:
            return name
        source, member, owner = self._files[name]
        if isinstance(source, zipfile.ZipFile):
            return f"{source.filename or owner}:{member}"
        return str(source / member)

    def open_inner_zip(self, name: str) -> None:
        """Add the members of a zip that lies inside, as COCO's panoptic PNGs do."""
        content = io.BytesIO(self.read(name))
        self._add_zip(content, self.describe(name), self._files[name].owner)
        for cached in ("names", "fingerprint", "by_file_name"):
            self.__dict__.pop(cached, None)

    @cached_property
    def by_file_name(self) -> dict[str, list[str]]:
        """Image files by the last part of their name."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(path.name, []).append(name)
        return found

    def _add(self, name: str, entry: _Entry) -> None:
        path = PurePosixPath(name)
        if path.parts[0] == "__MACOSX" or path.name.startswith("._"):
            return
        known = self._files.setdefault(name, entry)
        # A zip beside its own unpacked copy is fine; two data sets on top of each other are not.
        if known.owner != entry.owner and path.suffix.lower() in DATA_SUFFIXES:
            raise DatasetError(
                f"{known.owner} and {entry.owner} both hold {name}.",
                fix="Evaluate them one after the other, or pass a folder that holds both.",
            )

    def _add_folder(self, root: Path) -> None:
        seen = set()
        for folder, subfolders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back up
                subfolders.clear()
                continue
            seen.add(real)
            inside = Path(folder).relative_to(root)
            for name in names:
                member = (inside / name).as_posix()
                self._add(member, _Entry(root, member, str(root)))
        for path in sorted(root.glob("*.zip")):
            self._add_zip(path, str(path), str(root))

    def _add_zip(self, file: Path | io.BytesIO, origin: str, owner: str) -> None:
        try:
            archive = zipfile.ZipFile(file)
        except READ_ERRORS as error:
            raise DatasetError(
                f"{origin} is not a folder and not a whole zip file.",
                fix="Download it again, or pass the folder that it unpacks to.",
            ) from error
        for member in archive.namelist():
            if not member.endswith(("/", "\\")):
                self._add(member.replace("\\", "/"), _Entry(archive, member, owner))


def choose(names: Sequence[str], split: str | None, what: str) -> str:
    """The one name, or the one of the split: a folder of that name, or ``…_<split>.json``.

    Raises:
        DatasetError: none is of the split, or several remain.
    """
    chosen = [name for name in names if split is None or split in words(name)]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise DatasetError(f"No {what} of the split {split!r}; there are {', '.join(names)}.")
    raise DatasetError(
        f"There are {len(chosen)} files with {what}: {', '.join(chosen)}.",
        fix="Say which: --split val2017.",
    )


def words(name: str) -> set[str]:
    """Folders of a name, and the parts of its stem between underscores."""
    path = PurePosixPath(name)
    return {*path.parent.parts, *path.stem.split("_")}
