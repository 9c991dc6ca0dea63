"""The image files that paths, folders and globs stand for, and what was left out of folders."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.decoding import IMAGE_SUFFIXES
from eomt_deploy.errors import ImageError

JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders of copies and thumbnails that macOS, Synology and Windows leave."""
LINK, SPECIAL, LOCKED, FOLDER = "broken link", "special file", "unreadable folder", "folder"
SHOWN_REASONS = 6


@dataclass(frozen=True)
class FoundImages:
    """What a search found.

    Attributes:
        paths: image files, each once.
        left_out: files inside the searched folders that were not taken -> why: a suffix, or words.
    """

    paths: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]

    @property
    def note(self) -> str:
        """One line, such as ``left out 3 files: 2 .txt, 1 hidden``; empty where all were taken."""
        if not self.left_out:
            return ""
        counts = Counter(reason for _, reason in self.left_out)
        reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
        parts = [_counted(counts[reason], reason) for reason in reasons[:SHOWN_REASONS]]
        if rest := sum(counts[reason] for reason in reasons[SHOWN_REASONS:]):
            parts.append(f"{rest} of other kinds")
        return f"left out {_counted(len(self.left_out), 'file')}: {', '.join(parts)}"


def _counted(count: int, what: str) -> str:
    plural = count > 1 and what in ("file", LINK, SPECIAL, LOCKED, FOLDER)
    return f"{count} {what}{'s' if plural else ''}"


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is one that systems and tools leave behind.

    Hidden ones (``._a.jpg`` of macOS, ``.ipynb_checkpoints``, ``.thumbnails``, ``.git``), and
    folders such as ``__MACOSX``.
    """
    return name.startswith(".") or name in JUNK_FOLDERS


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """As :func:`search_images`, without what was left out."""
    return list(search_images(sources).paths)


def search_images(sources: Iterable[str | Path]) -> FoundImages:
    """Image files that paths, folders and globs stand for, sorted in each folder, once each.

    Folders are searched deeply, also through links, and each folder once. Whatever has a suffix of
    :data:`eomt_deploy.decoding.FORMATS` is taken, apart from hidden files and folders. A file that
    is named itself, or matched by a glob, is taken whatever it is called.

    Raises:
        ImageError: a path that is not there, a glob or folder without any image.
    """
    found: dict[str, Path] = {}
    left_out: dict[str, tuple[Path, str]] = {}
    for source in sources:
        path = Path(source)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = []
            for inside, reason in _walk(path):
                if reason:
                    left_out.setdefault(os.path.abspath(inside), (inside, reason))
                else:
                    matches.append(inside)
            if not matches:
                raise ImageError(
                    f"The folder {path} holds no image.",
                    why=FoundImages((), tuple(left_out.values())).note,
                    fix=f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
                )
        elif glob.has_magic(str(source)):
            matches = []
            for name in _matching(str(source)):
                if Path(name).is_file():
                    matches.append(Path(name))
                else:
                    left_out.setdefault(os.path.abspath(name), (Path(name), FOLDER))
            if not matches:
                raise ImageError(f"No file matches {source}.")
        else:
            raise ImageError(f"There is no image or folder at {path}.")
        for match in sorted(matches):  # one image named twice, as a/x.jpg and ./a/x.jpg, is one
            found.setdefault(os.path.abspath(match), match)
    for taken in found:
        left_out.pop(taken, None)
    return FoundImages(tuple(found.values()), tuple(left_out.values()))


def _matching(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern, recursive=True)
    except ValueError:  # a null byte
        return []


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder, and why it is left out ("" for an image).

    Real folders come first, then linked ones, then hidden ones: a folder that can be reached in
    several ways is searched once, under its best name, and a link that leads back ends there.
    """
    real, linked, hidden = deque([root]), deque[Path](), deque[Path]()
    seen: set[str] = set()
    while queue := real or linked or hidden:
        junk = queue is hidden
        folder = queue.popleft()
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError:
            yield folder, LOCKED
            continue
        for entry in entries:
            path = folder / entry.name
            unwanted = junk or is_junk(entry.name)
            if _is_dir(entry):
                if not unwanted:
                    (linked if entry.is_symlink() else real).append(path)
                elif not entry.is_symlink():
                    hidden.append(path)
            elif unwanted:
                yield path, "hidden"
            elif not path.is_file():
                yield path, LINK if entry.is_symlink() else SPECIAL
            else:
                suffix = path.suffix.lower()
                yield path, "" if suffix in IMAGE_SUFFIXES else suffix or "without a suffix"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
