"""Find the image files of paths, folders and globs, and list what was left out."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.decoding import IMAGE_SUFFIXES
from eomt_deploy.errors import ImageError

JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that macOS, Synology and Windows create for copies and thumbnails."""
LINK, SPECIAL, LOCKED, FOLDER = "broken link", "special file", "unreadable folder", "folder"
SHOWN_REASONS = 6


@dataclass(frozen=True)
class FoundImages:
    """Result of a search.

    Attributes:
        paths: image files, without duplicates.
        addresses: http(s) addresses, without duplicates.
        left_out: (path, reason) of each file in the searched folders that was left out; the reason
            is its suffix or e.g. ``hidden``.
    """

    paths: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]
    addresses: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """One line, e.g. ``left out 3 files: 2 .txt, 1 hidden``; empty if nothing was left out."""
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
    """Whether a file or folder with this name was created by the system or by a tool.

    These are hidden names (``._a.jpg`` of macOS, ``.ipynb_checkpoints``, ``.thumbnails``,
    ``.git``) and folders such as ``__MACOSX``.
    """
    return name.startswith(".") or name in JUNK_FOLDERS


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """The paths that :func:`search_images` finds."""
    return list(search_images(sources).paths)


def search_images(sources: Iterable[str | Path], *, addresses: bool = False) -> FoundImages:
    """Find the image files of paths, folders, globs and lists, without duplicates.

    Folders and globs are sorted. Web addresses are only collected, if ``addresses`` allows them.

    ``@list.txt`` stands for the paths, folders and globs in a text file, one per line; empty lines
    and lines that start with ``#`` are skipped. A relative path is looked up in the current folder,
    then in the folder of the list.

    Folders are searched recursively, also through links, and each folder only once. Files with a
    suffix of :data:`eomt_deploy.decoding.FORMATS` are taken, except hidden files and files in
    hidden folders. A file that is given by its path, or matched by a glob, is always taken.

    Raises:
        ImageError: a path does not exist, or a glob or folder contains no image.
    """
    found: dict[str, Path] = {}
    web: dict[str, None] = {}
    left_out: dict[str, tuple[Path, str]] = {}
    for source in _with_lists(sources):
        if is_address(str(source)):
            if not addresses:
                raise ImageError(
                    f"{without_secrets(str(source))} is a web address, but files are needed here.",
                    fix="Download the image first.",
                )
            web[str(source)] = None
            continue
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
                    f"The folder {path} contains no image.",
                    why=FoundImages((), tuple(left_out.values())).note,
                    fix=f"Use files with these suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
                )
        elif glob.has_magic(str(source)):
            matches = []
            for name in _matching(str(source)):
                if Path(name).is_file():
                    matches.append(Path(name))
                else:
                    left_out.setdefault(os.path.abspath(name), (Path(name), FOLDER))
            if not matches:
                raise ImageError(f"No file matches {source}.", fix="Check the pattern.")
        else:
            raise ImageError(f"There is no image or folder at {path}.", fix="Check the path.")
        for match in sorted(matches):  # a/x.jpg and ./a/x.jpg are the same image
            found.setdefault(os.path.abspath(match), match)
    for taken in found:
        left_out.pop(taken, None)
    return FoundImages(tuple(found.values()), tuple(left_out.values()), tuple(web))


def _with_lists(sources: Iterable[str | Path]) -> Iterator[str | Path]:
    """The sources, with the content of a list in the place of ``@list.txt``."""
    for source in sources:
        if not str(source).startswith("@") or Path(source).exists():
            yield source
            continue
        path = Path(str(source)[1:])
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(
                f"The list of images {path} cannot be read: {reason}.",
                fix="Pass @ and a UTF-8 text file with one path per line.",
            ) from error
        entries = [line.strip() for line in lines]
        entries = [entry for entry in entries if entry and not entry.startswith("#")]
        if not entries:
            raise ImageError(f"The list of images {path} is empty.", fix="Write one path per line.")
        for entry in entries:
            beside = path.parent / entry
            missing = not Path(entry).exists() and not glob.has_magic(entry)
            yield beside if missing and beside.exists() else entry


def _matching(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern, recursive=True)
    except ValueError:  # a null byte
        return []


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder with the reason to leave it out ("" for an image).

    Real folders come first, then linked ones, then hidden ones. So a folder with several paths is
    searched once, under the best of them, and a link to a parent folder causes no endless loop.
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
    except OSError:  # a link to itself
        return False
