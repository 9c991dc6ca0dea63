"""The description inside a ``.pt2`` package, read without loading its machine code."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path

from eomt_deploy.errors import ArtifactError
from eomt_deploy.fields import MAX_LENGTH, Words, check_fields, read_object

METADATA_FILE = "wrapper_metadata.json"
METADATA = Words(1000, MAX_LENGTH)
FIX = "Make it again from its checkpoint."
MAX_RATIO, ALWAYS_ALLOWED = 50, 64 << 20
"""A package may unpack to this many times its size on disk, and always to these bytes. Weights
hardly shrink, machine code does so by 3 to 5 times; a zip file made to fill a disk reaches 1000."""
DAMAGED = (
    zipfile.BadZipFile, OSError, ValueError, EOFError, LookupError, RuntimeError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""What the standard library raises for zip files that are damaged, encrypted or packed by a method
that it does not know."""


def read_metadata(path: Path) -> dict[str, str]:
    """What a package says of itself, without loading its machine code.

    What the zip file declares is checked before anything in it is unpacked.

    Raises:
        ArtifactError: it is no package, or what it declares cannot be true.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_declared(sum(entry.file_size for entry in entries), size)
            entry = next((e for e in entries if e.filename.endswith(METADATA_FILE)), None)
            content = b"{}" if entry is None else _read_entry(archive, entry)
        found = read_object(content, f"The metadata of {path}", FIX)
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no model at {path}.", fix="Check the path.") from error
    except DAMAGED as error:
        raise ArtifactError(
            f"{path} is no AOTInductor package, or it is damaged ({error}).", fix=FIX
        ) from error
    check_fields(METADATA, found, f"The metadata of {path}", FIX, name="metadata")
    return found


def check_declared(declared: int, size: int) -> None:
    """The bytes that a zip file unpacks to must be possible for one of ``size`` bytes. Pure.

    Raises:
        ValueError: they are not.
    """
    limit = max(ALWAYS_ALLOWED, MAX_RATIO * size)
    if declared > limit:
        raise ValueError(
            f"its {size:,} bytes declare {declared:,} bytes of content, the maximum is {limit:,}"
        )


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size <= MAX_LENGTH:
        with archive.open(entry) as file:
            content = file.read(MAX_LENGTH + 1)  # what it declares may be wrong
        if len(content) <= MAX_LENGTH:
            return content
    raise ValueError(
        f"{entry.filename} declares {entry.file_size:,} bytes, the maximum is {MAX_LENGTH:,}"
    )
