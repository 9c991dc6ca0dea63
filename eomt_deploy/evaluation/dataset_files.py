"""Files of a data set, from folders and from the official zip files."""

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
from eomt_deploy.units import counted

NAMED = 5
"""Maximum number of files that a remark lists by name."""
DATA_SUFFIXES = IMAGE_SUFFIXES | {".json"}


class _Entry(NamedTuple):
    source: Path | zipfile.ZipFile
    member: str
    owner: str


class FileIndex:
    """Index of all files in folders and zip files, by their relative POSIX name.

    Zip files directly in a folder are opened, too. Hidden files and files that systems and tools
    leave behind are ignored.

    Args:
        paths: folders and zip files.
        max_pixels: limit for each image and label, see :func:`eomt_deploy.load_image`.

    Raises:
        DatasetError: a path does not exist or is neither a folder nor a valid zip file, or two
            paths contain files with the same name.
    """

    def __init__(self, paths: Iterable[str | Path], *, max_pixels: int | None = None) -> None:
        self.max_pixels = check_max_pixels(max_pixels)
        self._files: dict[str, _Entry] = {}
        # Images whose EXIF orientation was ignored or applied; a dict keeps their order.
        self._stored: dict[str, None] = {}
        self._turned: dict[str, None] = {}
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._add_zip(path, str(path), str(path))
            else:
                raise DatasetError(
                    f"The data set {path} does not exist.",
                    fix="Check the path; it must be a folder or a zip file.",
                )

    @property
    def origin(self) -> str:
        return ", ".join(str(path) for path in self.paths)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all names and sizes, with checksums (zip files) or modification times."""
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
        """Sorted names that contain a match of the regular expression."""
        search = re.compile(pattern).search
        return [name for name in self.names if search(name)]

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            DatasetError: it cannot be read.
        """
        source, member, _ = self._files[name]
        try:
            if isinstance(source, zipfile.ZipFile):
                return read_member(source, member)
            return (source / member).read_bytes()
        except Exception as error:  # damaged or encrypted zip files raise many types
            raise DatasetError(
                f"{self.describe(name)} cannot be read: {str(error) or type(error).__name__}.",
                fix="If it is in a zip file, unpack the zip file and pass the folder.",
            ) from error

    def image(self, name: str, size: tuple[int, int]) -> RgbImage:
        """Decode an image in the orientation of its labels, uint8 [H, W, 3], RGB.

        The EXIF orientation is ignored, as in the official data set readers, unless only the
        upright image has the size of the labels; see :func:`decode_labelled`.

        Args:
            name: name of the image.
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
        """Open a label image without decoding it; errors of its decoder become DatasetError."""
        data = self._encoded_image(name)
        with self._named_errors(), opened(data, self.describe(name), self.max_pixels) as image:
            yield image

    def label_image(self, name: str) -> RgbImage:
        """Decode a label image without EXIF rotation, uint8 [H, W, 3], RGB.

        Raises:
            DatasetError: it cannot be read, is too large, or is deeper than 8 bits.
        """
        data, origin = self._encoded_image(name), self.describe(name)
        with self._named_errors(), opened(data, origin, self.max_pixels) as image:
            check_depth(image, data, origin)
            return to_rgb(image)

    def remarks(self) -> list[str]:
        """Remarks on the EXIF orientations of the images that were read so far."""
        remarks = []
        if self._stored:
            remarks.append(
                f"{_images_have(len(self._stored))} an EXIF orientation, which was ignored "
                f"because labels refer to the stored pixels ({_some(self._stored)})."
            )
        if self._turned:
            remarks.append(
                f"{_images_have(len(self._turned))} been rotated by their EXIF orientation, "
                f"because otherwise their size differs from the labels ({_some(self._turned)})."
            )
        return remarks

    def _encoded_image(self, name: str) -> bytes:
        """Read an image file after a check of its size."""
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
        """Full path of a file, for messages."""
        if name not in self._files:
            return name
        source, member, owner = self._files[name]
        if isinstance(source, zipfile.ZipFile):
            return f"{source.filename or owner}:{member}"
        return str(source / member)

    def open_inner_zip(self, name: str) -> None:
        """Add the members of a zip file inside a zip file, as with COCO's panoptic PNG files."""
        content = io.BytesIO(self.read(name))
        self._add_zip(content, self.describe(name), self._files[name].owner)
        for cached in ("names", "fingerprint", "by_file_name"):
            self.__dict__.pop(cached, None)

    @cached_property
    def by_file_name(self) -> dict[str, list[str]]:
        """Names of image files, grouped by the last part of the name."""
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
        # A zip file next to its unpacked folder is allowed; two data sets with equal names are not.
        if known.owner != entry.owner and path.suffix.lower() in DATA_SUFFIXES:
            raise DatasetError(
                f"{known.owner} and {entry.owner} both contain {name}.",
                fix="Evaluate them one after the other, or pass one folder that contains both.",
            )

    def _add_folder(self, root: Path) -> None:
        def unreadable(error: OSError) -> None:
            raise DatasetError(
                f"The folder {error.filename} cannot be read: {error.strerror}.",
                fix="Change its permissions, or pass only the folders of the data.",
            ) from error

        seen = set()
        for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
            real = os.path.realpath(folder)
            if real in seen:  # a symbolic link to a parent folder
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
                f"{origin} is not a folder and not a complete zip file.",
                fix="Download it again, or unpack it and pass the folder.",
            ) from error
        for member in archive.namelist():
            if not member.endswith(("/", "\\")):
                self._add(member.replace("\\", "/"), _Entry(archive, member, owner))


def _images_have(count: int) -> str:
    return f"{counted(count, 'image')} {'has' if count == 1 else 'have'}"


def choose(names: Sequence[str], split: str | None, what: str) -> str:
    """Select the only name, or the only name of a split.

    Args:
        names: names of files.
        split: a folder or a part of the stem between underscores, e.g. ``…_val2017.json``.
        what: content of the files, for messages.

    Raises:
        DatasetError: no name or several names remain.
    """
    chosen = [name for name in names if split is None or split in words(name)]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise DatasetError(
            f"No {what} of the split {split!r}, found {', '.join(names)}.",
            fix="Pass --split with a part of one of these names, e.g. val2017, or leave it out.",
        )
    raise DatasetError(
        f"There are {len(chosen)} files with {what}: {', '.join(chosen)}.",
        fix="Select one with --split, e.g. --split val2017.",
    )


def words(name: str) -> set[str]:
    """Folders of a name, and the parts of its stem between underscores."""
    path = PurePosixPath(name)
    return {*path.parent.parts, *path.stem.split("_")}


def _some(names: Iterable[str]) -> str:
    """The first ``NAMED`` names, and the number of further names."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
