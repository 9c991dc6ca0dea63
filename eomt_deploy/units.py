"""Sizes in bytes and counted nouns, as people write them."""

from __future__ import annotations

import re

from eomt_deploy.errors import UsageError

BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """Parse a size such as ``4GiB``, ``512MiB`` or a number of bytes.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"([0-9]{1,15}) ?(|[KMG]|[KMG]iB)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size in bytes.", fix="Use e.g. 4GiB or 512MiB.")
    size = int(match[1]) * BYTES[match[2]]
    if size >= 2**63:
        raise UsageError(
            f"The size must be below 2**63 bytes, got {text!r}.", fix="Use e.g. 4GiB or 512MiB."
        )
    return size


def time_text(seconds: float) -> str:
    """A duration as people write it: ``7 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(share: float) -> str:
    """A share as a percentage with three significant digits, e.g. ``4.57%`` or ``0.00017%``."""
    if 0 < share < 1e-6:
        return "below 0.0001%"
    return f"{100 * share:.3g}%"


def logit_error(share: float, maximum: float) -> str:
    """The error of the worst logit, as it stands beside the agreement of the results."""
    return f"largest logit error {percent(share)} of the largest logit (maximum {percent(maximum)})"


def counted(number: int, noun: str) -> str:
    """A number with its noun, e.g. ``1 image`` or ``6 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
