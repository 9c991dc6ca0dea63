"""The description inside a ``.pt2`` package, read without loading its machine code."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from eomt_deploy.errors import ModelFileError
from eomt_deploy.fields import MAX_LENGTH, Words, check_fields, read_object

METADATA_FILE, SOURCE_FILE = "wrapper_metadata.json", "wrapper.cpp"
ATTENTION = re.compile(rb"\baoti_torch_[a-z]+__scaled_dot_product_([a-z_]+)\(")
"""A call of one of PyTorch's attention kernels in the C++ source of a package."""
METADATA = Words(1000, MAX_LENGTH)
FIX = "Export the checkpoint again: eomt-deploy export CHECKPOINT -o model.pt2"
MAX_RATIO, ALWAYS_ALLOWED = 50, 64 << 20
"""Maximum ratio of unpacked size to file size, and the unpacked size in bytes that is always
allowed. Weights hardly compress, machine code 3 to 5 times, a zip bomb 1000 times."""
DAMAGED = (
    zipfile.BadZipFile, OSError, ValueError, EOFError, LookupError, RuntimeError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""Exceptions of the standard library for zip files that are damaged, encrypted or compressed with
an unknown method."""


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a package without loading its machine code.

    The sizes that the zip file declares are checked before anything in it is unpacked.

    Raises:
        ModelFileError: the file is not a package, or the declared sizes are implausible.
    """
    content = _read_member(path, METADATA_FILE) or b"{}"
    found = read_object(content, f"The metadata of {path}", FIX)
    check_fields(METADATA, found, f"The metadata of {path}", FIX, name="metadata")
    return found


def attention_kernels(path: Path) -> Counter[str]:
    """How often a package calls each of PyTorch's attention kernels, e.g. ``flash_attention``.

    Empty if attention is written out, as matrix products and a softmax.

    Raises:
        ModelFileError: as :func:`read_metadata`.
    """
    calls = ATTENTION.findall(_read_member(path, SOURCE_FILE) or b"")
    return Counter(name.decode() for name in calls)


def check_declared(declared: int, size: int) -> None:
    """Check that the declared unpacked size is plausible for a zip file of ``size`` bytes.

    Raises:
        ValueError: the declared size exceeds the maximum.
    """
    limit = max(ALWAYS_ALLOWED, MAX_RATIO * size)
    if declared > limit:
        raise ValueError(
            f"its {size:,} bytes declare {declared:,} unpacked bytes, the maximum is {limit:,}"
        )


def _read_member(path: Path, suffix: str) -> bytes | None:
    """The content of the first member with this suffix; None if there is none.

    Raises:
        ModelFileError: as :func:`read_metadata`.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_declared(sum(entry.file_size for entry in entries), size)
            entry = next((e for e in entries if e.filename.endswith(suffix)), None)
            return None if entry is None else _read_entry(archive, entry)
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no model at {path}.", fix="Check the path.") from error
    except DAMAGED as error:
        raise ModelFileError(
            f"{path} is not an AOTInductor package, or it is damaged ({error}).", fix=FIX
        ) from error


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size <= MAX_LENGTH:
        with archive.open(entry) as file:
            content = file.read(MAX_LENGTH + 1)  # the declared size can be wrong
        if len(content) <= MAX_LENGTH:
            return content
    raise ValueError(
        f"{entry.filename} declares {entry.file_size:,} bytes, the maximum is {MAX_LENGTH:,}"
    )
