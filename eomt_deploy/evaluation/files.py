"""Files of a data set, from folders and from the official zip files as they are downloaded."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from eomt_deploy.errors import DatasetError
from eomt_deploy.sources import IMAGE_SUFFIXES, RgbImage, decode_image

Source = Path | zipfile.ZipFile


class FileIndex:
    """Every file below some folders and zip files, by its relative POSIX name.

    Zip files that lie at the top of a folder are opened, too.

    Raises:
        DatasetError: a path that is not there, is no folder or zip, or is a damaged zip.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._files: dict[str, Source] = {}
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._add_zip(path, str(path))
            else:
                raise DatasetError(f"There are no data at {path}.")

    @property
    def origin(self) -> str:
        return ", ".join(str(path) for path in self.paths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

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
        source = self._files[name]
        try:
            if isinstance(source, zipfile.ZipFile):
                return source.read(name)
            return (source / name).read_bytes()
        except (OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{self.describe(name)} cannot be read: {error}.") from error

    def image(self, name: str) -> RgbImage:
        """Pixels of an image file, uint8 RGB."""
        return decode_image(self.read(name), self.describe(name))

    def describe(self, name: str) -> str:
        """The file's full place, for messages."""
        source = self._files.get(name)
        if isinstance(source, zipfile.ZipFile):
            return f"{source.filename or 'a zip inside a zip'}:{name}"
        return str(source / name) if source else name

    def open_inner_zip(self, name: str) -> None:
        """Add the members of a zip that lies inside, as COCO's panoptic PNGs do."""
        self._add_zip(io.BytesIO(self.read(name)), self.describe(name))
        del self.__dict__["names"]

    @cached_property
    def _by_file_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(PurePosixPath(name).name, []).append(name)
        return found

    def find_image(self, file_name: str, *, outside: str) -> str:
        """The image called ``file_name`` that does not lie in the folder ``outside``.

        Raises:
            DatasetError: there is none, or several and nothing tells which.
        """
        found = self._by_file_name.get(PurePosixPath(file_name).name, [])
        found = [name for name in found if not name.startswith(f"{outside}/")]
        if len(found) > 1:
            found = [name for name in found if f"/{name}".endswith(f"/{file_name}")] or found
        if len(found) > 1:
            found = [name for name in found if "images" in PurePosixPath(name).parts] or found
        if len(found) != 1:
            what = "is missing" if not found else f"is ambiguous: {', '.join(found)}"
            raise DatasetError(
                f"The image {file_name} {what} in {self.origin}.",
                fix="Pass the folder or zip with the images, too: --data A --data B.",
            )
        return found[0]

    def _add_folder(self, root: Path) -> None:
        for folder, _, names in os.walk(root):
            inside = Path(folder).relative_to(root)
            for name in names:
                self._files.setdefault((inside / name).as_posix(), root)
        for path in sorted(root.glob("*.zip")):
            self._add_zip(path, str(path))

    def _add_zip(self, file: Path | io.BytesIO, origin: str) -> None:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError) as error:
            raise DatasetError(
                f"{origin} is not a folder and not a whole zip file.",
                fix="Download it again, or pass the folder that it unpacks to.",
            ) from error
        for name in archive.namelist():
            if not name.endswith("/"):
                self._files.setdefault(name, archive)


def choose(names: Sequence[str], split: str | None, what: str) -> str:
    """The one name, or the one of the split.

    Raises:
        DatasetError: several remain.
    """
    chosen = [name for name in names if split and split in name] or list(names)
    if len(chosen) != 1:
        raise DatasetError(
            f"There are {len(chosen)} files with {what}: {', '.join(chosen)}.",
            fix="Say which: --split val2017.",
        )
    return chosen[0]
