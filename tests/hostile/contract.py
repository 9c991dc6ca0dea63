"""Targets of the fuzzers, and helpers for them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .mutations import Files, Mutator

MiB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One kind of input of eomt-deploy.

    Attributes:
        valid: creates inputs that must be accepted.
        mutate: creates a hostile input.
        run: passes the files of a folder to eomt-deploy; an EomtDeployError means "refused".
        share: share of the inputs of a long run, relative to the other targets.
        memory: maximum memory of an input in bytes.
    """

    name: str
    valid: Callable[[], Sequence[Files]]
    mutate: Callable[[Mutator], Files]
    run: Callable[[Path], None]
    share: int = 10
    memory: int = 300 * MiB


def lot(folder: Path, out_of: int) -> bool:
    """True for one in ``out_of`` inputs, by a hash of their content: always the same ones."""
    digest = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = zlib.crc32(path.read_bytes(), digest)
    return digest % out_of == 0


def require(fact: bool, what: str) -> None:
    if not fact:
        raise AssertionError(what)
