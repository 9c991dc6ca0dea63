"""Files of a data set, from folders and from the official zip files as they are downloaded."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from eomt_deploy.archives import read_member
from eomt_deploy.decoding import (
    IMAGE_SUFFIXES,
    check_depth,
    check_encoded_size,
    check_max_pixels,
    opened,
    to_rgb,
)
from eomt_deploy.errors import DatasetError, ImageError
from eomt_deploy.image_search import is_junk
from eomt_deploy.sources import RgbImage, decode_labelled

NAMED = 5
"""Files that a remark names; of the others, it gives the number."""
DATA_SUFFIXES = IMAGE_SUFFIXES | {".json"}


class _Entry(NamedTuple):
    source: Path | zipfile.ZipFile
    member: str
    owner: str


class FileIndex:
    """Every file below some folders and zip files, by its relative POSIX name.

    Zip files that lie at the top of a folder are opened, too; hidden files, and what systems and
    tools leave behind, are not seen.

    Args:
        paths: folders and zip files.
        max_pixels: limit of each image and label, see :func:`eomt_deploy.load_image`.

    Raises:
        DatasetError: a path that is not there, is no folder or zip, or is a damaged zip; or two
            paths that hold different files of one name.
    """

    def __init__(self, paths: Iterable[str | Path], *, max_pixels: int | None = None) -> None:
        self.max_pixels = check_max_pixels(max_pixels)
        self._files: dict[str, _Entry] = {}
        # Images with an EXIF orientation, by what was done with it; in order, each once.
        self._stored: dict[str, None] = {}
        self._turned: dict[str, None] = {}
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
                return read_member(source, member)
            return (source / member).read_bytes()
        except Exception as error:  # a damaged, encrypted or oddly packed zip raises everything
            raise DatasetError(
                f"{self.describe(name)} cannot be read: {str(error) or type(error).__name__}.",
                fix="If it lies in a zip, unpack that yourself and pass the folder.",
            ) from error

    def image(self, name: str, size: tuple[int, int]) -> RgbImage:
        """Pixels of an image as its labels see them, uint8 RGB.

        The EXIF orientation is ignored, as the official data set reader does, unless only the
        upright image has the size of the labels: see :func:`decode_labelled`.

        Args:
            name: of the image.
            size: (H, W) of its labels.

        Raises:
            DatasetError: it cannot be read, or is too large.
        """
        data = self._encoded_image(name)
        with self._named_errors():
            pixels, orientation, turned = decode_labelled(
                data, self.describe(name), size, max_pixels=self.max_pixels
            )
        if orientation != 1:
            (self._turned if turned else self._stored)[name] = None
        return pixels

    @contextmanager
    def opened(self, name: str) -> Iterator[Image.Image]:
        """A label image, not decoded yet; whatever its decoder raises is a DatasetError."""
        data = self._encoded_image(name)
        with self._named_errors(), opened(data, self.describe(name), self.max_pixels) as image:
            yield image

    def label_image(self, name: str) -> RgbImage:
        """Pixels of a label image as they are stored, uint8 RGB.

        Raises:
            DatasetError: it cannot be read, is too large, or is deeper than 8 bits.
        """
        data, origin = self._encoded_image(name), self.describe(name)
        with self._named_errors(), opened(data, origin, self.max_pixels) as image:
            check_depth(image, data, origin)
            return to_rgb(image)

    def remarks(self) -> list[str]:
        """What the user should know of the EXIF orientations of the images read so far."""
        remarks = []
        if self._stored:
            remarks.append(
                f"{len(self._stored)} images have an EXIF orientation, which was ignored: labels "
                f"belong to the stored pixels ({_some(self._stored)})."
            )
        if self._turned:
            remarks.append(
                f"{len(self._turned)} images were turned by their EXIF orientation, because only "
                f"then they have the size of their labels ({_some(self._turned)})."
            )
        return remarks

    def _encoded_image(self, name: str) -> bytes:
        """Content of an image, which is read, or inflated, only if its size is that of one."""
        source, member, _ = self._files[name]
        if isinstance(source, zipfile.ZipFile):
            size = source.getinfo(member).file_size
        else:
            size = (source / member).stat().st_size if (source / member).exists() else 0
        with self._named_errors():
            check_encoded_size(size, self.describe(name), self.max_pixels)
        return self.read(name)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            raise DatasetError(error.what, why=error.why, fix=error.fix) from error

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
        if not path.parts or any(map(is_junk, path.parts)):
            return
        name = str(path)
        known = self._files.setdefault(name, entry)
        # A zip beside its own unpacked copy is fine; two data sets on top of each other are not.
        if known.owner != entry.owner and path.suffix.lower() in DATA_SUFFIXES:
            raise DatasetError(
                f"{known.owner} and {entry.owner} both hold {name}.",
                fix="Evaluate them one after the other, or pass a folder that holds both.",
            )

    def _add_folder(self, root: Path) -> None:
        def unreadable(error: OSError) -> None:
            raise DatasetError(
                f"The folder {error.filename} cannot be read: {error.strerror}.",
                fix="Allow reading it, or pass the folders that hold the data.",
            ) from error

        seen = set()
        for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back up
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not is_junk(name))
            inside = Path(folder).relative_to(root)
            for name in names:
                member = (inside / name).as_posix()
                self._add(member, _Entry(root, member, str(root)))
        for path in sorted(root.glob("*.zip")):
            self._add_zip(path, str(path), str(root))

    def _add_zip(self, file: Path | io.BytesIO, origin: str, owner: str) -> None:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:
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


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
