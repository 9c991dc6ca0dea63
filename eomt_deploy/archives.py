"""What a zip archive declares is checked before anything in it is inflated."""

from __future__ import annotations

import zipfile


def check_zip_sizes(archive: zipfile.ZipFile, limit: int) -> None:
    """Refuse an archive whose entries together declare more than ``limit`` bytes.

    Raises:
        ValueError: it does; the message has both numbers.
    """
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > limit:
        raise ValueError(f"its entries declare {declared:,} bytes, the limit is {limit:,}")
