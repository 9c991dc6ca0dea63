"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from eomt_deploy.errors import UsageError

BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """``4GiB``, ``512MiB`` or plain bytes to a number.

    Raises:
        UsageError: it is none of them.
    """
    match = re.fullmatch(r"([0-9]{1,15}) ?(|[KMG]|[KMG]iB)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size in bytes.", fix="Write 4GiB or 512MiB.")
    size = int(match[1]) * BYTES[match[2]]
    if size >= 2**63:
        raise UsageError(f"{text!r} is more memory than there can be.")
    return size
