"""The journal of an output folder: which files in it are ours, and how far a run got.

The names of files are recorded before they are written, their sizes and times afterwards. So a
later run knows every file that we wrote, even after kill -9, and a file that somebody else changed
or added is not treated as ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from eomt_deploy.closing import Closing
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import GENERATOR, STAGING_PREFIX, unwritable, write_atomically

JOURNAL_NAME = ".eomt-deploy.jsonl"
SCHEMA = 1
Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


@dataclass
class Journal:
    """Files that earlier runs wrote into a folder.

    Attributes:
        folder: the output folder.
        places: names of the files and subfolders that results are written to; ``*`` means every
            file directly in the folder. Other files are ignored.
        settings: settings of the last run; empty without a journal.
        files: stamp of every finished file, by its POSIX path inside the folder.
        unfinished: files that were being written when a run was killed.
    """

    folder: Path
    places: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Stamp] = field(default_factory=dict)
    unfinished: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path, places: tuple[str, ...]) -> Journal:
        """Read the journal of a folder; it is empty if the file is missing or unreadable."""
        journal = cls(folder, places)
        for record in read_records(folder):
            journal.settings = record.get("settings", journal.settings)
            journal.unfinished.update(filter(journal._has_place, record.get("writing", ())))
            for name, stamp in record.get("files", {}).items():
                if journal._has_place(name):
                    journal.files[name] = (stamp[0], stamp[1])
                    journal.unfinished.discard(name)
        return journal

    def _has_place(self, name: str) -> bool:
        """Whether results are written to this name: an untrusted journal can name other files."""
        parts = PurePosixPath(name).parts
        return parts[0] in self.places or ("*" in self.places and len(parts) == 1)

    def is_ours(self, name: str) -> bool:
        """Whether we wrote the file with this name and it has not changed since."""
        if name in self.unfinished:
            return True
        return name in self.files and stamp(self.folder / name) == self.files[name]

    def foreign_files(self) -> list[str]:
        """Existing files in ``places`` that are not ours."""
        found: set[Path] = set()
        for place in self.places:
            top = self.folder / place
            found.update(self.folder.glob("*") if place == "*" else [top, *top.rglob("*")])
        names = (p.relative_to(self.folder).as_posix() for p in found if p.is_file())
        # Leave out temporary files of killed processes: the next write in the folder removes them.
        names = (name for name in names if not _is_staged(name))
        return sorted(n for n in names if n != JOURNAL_NAME and not self.is_ours(n))

    def check_foreign(self) -> None:
        """Refuse a folder with foreign files where results are written.

        Raises:
            OutputError: there are foreign files.
        """
        foreign = self.foreign_files()
        if foreign:
            shown = ", ".join(str(self.folder / name) for name in foreign[:3])
            raise OutputError(
                f"{self.folder} contains {len(foreign)} files that eomt-deploy did not write or "
                f"that changed since: {shown}{', …' if len(foreign) > 3 else ''}.",
                why="Results are written to the same names or subfolders, and your files are not "
                "replaced.",
                fix="Choose another output folder, or pass --overwrite to replace the files whose "
                "names are needed.",
            )

    def remove_files(self, names: Iterable[str] | None = None) -> int:
        """Remove our files with these names (None: all), and subfolders that become empty.

        Returns:
            number of removed files.
        """
        count = 0
        parents: set[Path] = set()
        for name in {*self.files, *self.unfinished} if names is None else names:
            path = self.folder / name
            if self.is_ours(name) and path.is_file():
                path.unlink()
                count += 1
                parents.update(p for p in path.parents if self.folder in p.parents)
        for parent in sorted(parents, key=lambda p: -len(p.parts)):
            with suppress(OSError):  # not empty, or a link
                parent.rmdir()
        return count

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse to continue a run with other settings.

        Raises:
            UsageError: the settings of the earlier run are different.
        """
        before = self.settings
        changed = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        if before and changed:
            differences = (f"{k} was {before.get(k)}, now it is {settings.get(k)}" for k in changed)
            raise UsageError(
                f"{self.folder} contains results of a run with other settings: "
                f"{'; '.join(differences)}.",
                fix="Repeat the earlier command, leave out --resume to replace its results, or "
                "choose another folder.",
            )


class JournalWriter(Closing):
    """Appends to the journal of a folder.

    Args:
        folder: the output folder.
        settings: settings that the results depend on, JSON-serialisable.
        records: earlier records to keep; all others are dropped.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], records: Iterable[dict[str, Any]] = ()
    ) -> None:
        self._folder = folder
        header = {"generator": GENERATOR, "schema": SCHEMA, "settings": dict(settings)}
        path = folder / JOURNAL_NAME
        everything = itertools.chain([header], records)
        write_atomically(path, (f"{json.dumps(record)}\n".encode() for record in everything))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error) from error

    def announce(self, names: Iterable[str]) -> None:
        """Record the files that are about to be written."""
        self._append({"writing": list(names)})

    def record(self, names: Iterable[str], **facts: Any) -> None:
        """Record that files are finished, with additional facts."""
        self._append({"files": {name: stamp(self._folder / name) for name in names}, **facts})

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._folder / JOURNAL_NAME, error) from error

    def close(self) -> None:
        self._file.close()


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a folder's journal up to the first damaged or incomplete one."""
    try:
        file = (folder / JOURNAL_NAME).open(encoding="utf-8")
    except OSError:
        return
    with file:
        try:
            for number, line in enumerate(file):
                if not line.endswith("\n"):
                    return
                record: dict[str, Any] = json.loads(line)
                if not _is_valid(record, first=number == 0):
                    return
                yield record
        except (OSError, ValueError, RecursionError):
            return


def _is_valid(record: Any, *, first: bool) -> bool:
    if not isinstance(record, dict):
        return False
    if first and (record.get("schema") != SCHEMA or not isinstance(record.get("settings"), dict)):
        return False
    files, writing = record.get("files", {}), record.get("writing", [])
    if not isinstance(files, dict) or not isinstance(writing, list):
        return False
    return all(map(_is_inside, (*files, *writing))) and all(map(_is_stamp, files.values()))


def _is_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_staged(name: str) -> bool:
    return any(part.startswith(STAGING_PREFIX) for part in PurePosixPath(name).parts)


def _is_stamp(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)


def stamp(path: Path) -> Stamp | None:
    """Size and modification time of a file; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
