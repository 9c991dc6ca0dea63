"""What a zip archive declares is checked before anything in it is inflated."""

from __future__ import annotations

import zipfile

MAX_INFLATION = 100
"""Times that an entry may grow; JSON and label maps grow 5 to 30 times."""
SMALL_BYTES = 64 << 20
"""Entries up to this size may grow more: they fill no memory."""


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Content of an entry, inflated no further than the archive declares.

    Raises:
        ValueError: it declares far more than its packed bytes can honestly hold.
        zipfile.BadZipFile: it holds something else than it declares.
    """
    entry = archive.getinfo(name)
    if entry.file_size > max(SMALL_BYTES, MAX_INFLATION * entry.compress_size):
        raise ValueError(
            f"it declares {entry.file_size:,} bytes in {entry.compress_size:,} packed ones, the "
            f"limit is {MAX_INFLATION} times as many"
        )
    with archive.open(entry) as file:
        return file.read(entry.file_size)  # ZipFile.read() inflates first and looks then


def check_zip_sizes(archive: zipfile.ZipFile, limit: int) -> None:
    """Refuse an archive whose entries together declare more than ``limit`` bytes.

    Raises:
        ValueError: it does; the message has both numbers.
    """
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > limit:
        raise ValueError(f"its entries declare {declared:,} bytes, the limit is {limit:,}")
