"""What a target is, and what every target needs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .mutations import Files, Mutator

MiB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One door of eomt-deploy.

    Attributes:
        valid: inputs that must be accepted.
        mutate: makes a hostile input.
        run: hands the files of a folder to eomt-deploy; an EomtDeployError refuses them.
        share: inputs among those of a long run, relative to the others.
        memory: bytes that an input may take.
    """

    name: str
    valid: Callable[[], Sequence[Files]]
    mutate: Callable[[Mutator], Files]
    run: Callable[[Path], None]
    share: int = 10
    memory: int = 300 * MiB


def lot(folder: Path, out_of: int) -> bool:
    """True for one of so many inputs, by their content: an input behaves the same each time."""
    digest = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = zlib.crc32(path.read_bytes(), digest)
    return digest % out_of == 0


def require(fact: bool, what: str) -> None:
    if not fact:
        raise AssertionError(what)
