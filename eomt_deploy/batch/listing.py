"""The images of all sources, as an ordered stream of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eomt_deploy.batch.places import Place, as_local, file_system, is_remote
from eomt_deploy.decoding import IMAGE_SUFFIXES
from eomt_deploy.errors import ImageError, first_line
from eomt_deploy.image_search import is_junk, search_images

COLUMN = "path"
"""The column of a Parquet table that contains the paths."""
ROWS_AT_ONCE = 65_536


class Listing:
    """All images of some sources.

    Iterating yields absolute paths, URIs and http(s) addresses. The order is the same each time, as
    long as the files are the same. Paths of a folder are sorted and without duplicates; a Parquet
    table keeps its order and its duplicates, so that its rows and the results correspond. A table
    is read in parts, so that it can be larger than the memory.

    Args:
        sources: see :class:`~eomt_deploy.batch.config.BatchConfig`.

    Attributes:
        notes: lines for the user about files that were left out; complete after the iteration.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self.sources = tuple(map(as_local, sources))
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """Raises:
        ImageError: a source does not exist or contains no image.
        """
        self.notes = []
        local: list[str] = []
        for source in self.sources:
            table = source.lower().endswith(".parquet")
            if not table and not is_remote(source):
                local.append(source)  # together, so that duplicates are found
                continue
            yield from self._local(local)
            local = []
            yield from _table(source) if table else self._remote(source)
        yield from self._local(local)

    def _local(self, sources: list[str]) -> Iterator[str]:
        if not sources:
            return
        found = search_images(sources, addresses=True)
        if found.note:
            self.notes.append(found.note)
        yield from map(os.path.abspath, found.paths)
        yield from found.addresses

    def _remote(self, source: str) -> Iterator[str]:
        """The images below a URI, or the one at it."""
        from pyarrow import fs

        system, path = file_system(source)
        path = path.rstrip("/")
        try:
            (info,) = system.get_file_info([path])
            if info.type == fs.FileType.File:
                yield source
                return
            entries = system.get_file_info(fs.FileSelector(path, recursive=True))
        except Exception as error:  # each storage has its own exceptions
            reason = first_line(error)
            raise ImageError(
                f"{source} cannot be listed: {reason}.",
                fix="Check the address, and the credentials in the environment.",
            ) from error
        files = [info.path[len(path) + 1 :] for info in entries if info.type == fs.FileType.File]
        names = sorted(name for name in files if _is_image(name))
        if len(names) < len(files):
            self.notes.append(f"left out {len(files) - len(names)} files of {source}")
        if not names:
            raise ImageError(
                f"{source} contains no image.",
                fix=f"Use files with these suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
            )
        yield from (f"{source.rstrip('/')}/{name}" for name in names)


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not any(map(is_junk, parts))


def _table(source: str) -> Iterator[str]:
    """The paths in a Parquet table; relative paths start in the current folder."""
    from pyarrow import parquet

    folder, _, name = source.rpartition("/")
    place = Place.of(folder or os.curdir)
    try:
        with place.open(name) as file:
            table = parquet.ParquetFile(file)
            if COLUMN not in table.schema_arrow.names:
                raise ImageError(
                    f"{source} has no column {COLUMN!r}; its columns are "
                    f"{', '.join(table.schema_arrow.names)}.",
                    fix=f"Name the column with the paths of the images {COLUMN!r}.",
                )
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=[COLUMN]):
                yield from (_absolute(value, source) for value in batch.column(0).to_pylist())
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ImageError(
            f"{source} cannot be read as a Parquet table: {error}.", fix="Check the file."
        ) from error


def _absolute(value: Any, source: str) -> str:
    if not isinstance(value, str) or not value:
        raise ImageError(
            f"The column {COLUMN!r} of {source} contains {value!r}, which is not a path.",
            fix="Remove this row, or write a path.",
        )
    path = as_local(value)
    return path if "://" in path else os.path.abspath(path)
