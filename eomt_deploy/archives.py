"""Size checks of zip archives, made before anything is decompressed."""

from __future__ import annotations

import zipfile

MAX_INFLATION = 100
"""Maximum ratio of decompressed to compressed size; JSON and label maps have 5 to 30."""
SMALL_BYTES = 64 << 20
"""Entries up to this size may exceed the ratio: they cannot fill the memory."""


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Content of an entry, decompressed up to the size that the archive declares.

    Raises:
        ValueError: the declared size is implausible for the compressed size.
        zipfile.BadZipFile: the content does not match its declared size or checksum.
    """
    entry = archive.getinfo(name)
    if entry.file_size > max(SMALL_BYTES, MAX_INFLATION * entry.compress_size):
        raise ValueError(
            f"it declares {entry.file_size:,} bytes in {entry.compress_size:,} compressed bytes, "
            f"the maximum ratio is {MAX_INFLATION}"
        )
    with archive.open(entry) as file:
        return file.read(entry.file_size)  # ZipFile.read() decompresses without a limit


def check_zip_sizes(archive: zipfile.ZipFile, limit: int) -> None:
    """Refuse an archive whose entries together declare more than ``limit`` bytes.

    Raises:
        ValueError: the limit is exceeded; the message contains both numbers.
    """
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > limit:
        raise ValueError(f"its entries declare {declared:,} bytes, the limit is {limit:,}")
