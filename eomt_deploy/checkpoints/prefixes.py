"""Search for networks in a file by their keys, with any prefixes and wrappers.

Trainers put the network into other modules, each of which adds a component to the keys:
``module._orig_mod.model.network.q.weight``. If only a part of the network was wrapped, the
component is in the middle of the key. A few characteristic keys show where the network begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eomt_deploy.errors import CheckpointError

Layout = Literal["official", "huggingface", "lightly-train"]

WRAPPER = re.compile(r"module|_.*")
"""Components that wrapping modules add: `module` (DataParallel, DeepSpeed, AveragedModel),
`_orig_mod`, `_fsdp_wrapped_module`, `_checkpoint_wrapped_module`, `_forward_module`, … The networks
themselves do not have such components."""

TELLING: dict[Layout, dict[str, str]] = {
    "official": {
        "queries": r"q\.weight",
        "classes": r"class_head\.weight",
        "patches": r"(?:encoder\.)?backbone\.patch_embed\.(?:proj|patch_embeddings)\.weight",
    },
    "huggingface": {
        "queries": r"query\.weight",
        "classes": r"class_predictor\.weight",
        "patches": r"embeddings\.patch_embeddings\.(?:projection\.)?weight",
    },
    "lightly-train": {
        "queries": r"queries\.weight",
        "classes": r"class_head\.weight",
        "patches": r"backbone\.patch_embed\.proj\.weight",
    },
}
"""Characteristic keys. Two of three are enough, so that the third can be reported as missing."""
OWN: dict[Layout, str] = {"official": "network", "huggingface": "", "lightly-train": "model"}
"""Prefix that belongs to the layout itself."""
MAX_COPIES = 16

_PATTERNS = [
    (layout, part, re.compile(rf"(?:^|\.)({pattern})$"))
    for layout, parts in TELLING.items()
    for part, pattern in parts.items()
]
_ENDS = ("q.weight", "query.weight", "queries.weight", "class_head.weight",
         "class_predictor.weight", "proj.weight", "projection.weight",
         "patch_embeddings.weight")  # fmt: skip


@dataclass(frozen=True)
class Copy:
    """One network in a file.

    Attributes:
        layout: naming scheme of its keys.
        lead: prefix of its keys in the file, including the last dot.
        names: names in the file, by key without prefix and wrappers.
        wrappers: components that were removed from the middle of the keys.
    """

    layout: Layout
    lead: str
    names: Mapping[str, str]
    wrappers: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name for users: the prefix without the part of the layout; "." if it is empty."""
        parts = self.lead.split(".")[:-1]
        bare = list(parts)
        while bare and WRAPPER.fullmatch(bare[-1]):
            bare.pop()
        if bare and bare[-1] == OWN[self.layout]:
            parts = bare[:-1]
        return printable(".".join(parts)) or "."


def find_copies(names: Iterable[str]) -> list[Copy]:
    """All networks whose keys are among ``names``, in the order of the file.

    Raises:
        CheckpointError: the names of two tensors differ only in wrappers, or there are more than
            :data:`MAX_COPIES` networks.
    """
    names = list(names)
    found: dict[tuple[Layout, str], dict[str, str]] = {}
    for name in names:
        for layout, part, lead in _hits(name):
            found.setdefault((layout, lead), {}).setdefault(part, name)
    used: set[str] = set()
    accepted: dict[str, Layout] = {}
    for (layout, lead), parts in sorted(found.items(), key=lambda item: -len(item[1])):
        # Layouts share some keys: the layout with the most matches comes first.
        telling = len(parts) >= 2 and ("queries" in parts or layout == "official")
        if telling and used.isdisjoint(parts.values()) and lead not in accepted:
            used.update(parts.values())
            accepted[lead] = layout
    if len(accepted) > MAX_COPIES:
        raise CheckpointError(
            f"The file contains {len(accepted)} networks, the maximum is {MAX_COPIES}.",
            fix="Save the weights of one network in a separate file.",
        )
    owned: dict[str, list[str]] = {lead: [] for lead in accepted}
    for name in names:
        leads = [lead for lead in accepted if name.startswith(lead)]
        if leads:
            owned[max(leads, key=len)].append(name)
    order = sorted(accepted, key=lambda lead: names.index(owned[lead][0]))
    return [Copy(accepted[lead], lead, *below(owned[lead], lead)) for lead in order]


def below(names: Iterable[str], lead: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The names that start with ``lead``, by key without it and without wrappers; and the wrappers.

    Raises:
        CheckpointError: two names differ only in wrappers.
    """
    found: dict[str, str] = {}
    wrappers: dict[str, None] = {}
    for name in names:
        if not name.startswith(lead):
            continue
        parts = name[len(lead) :].split(".")
        kept = _kept(parts)
        wrappers |= dict.fromkeys(part for i, part in enumerate(parts) if i not in kept)
        key = ".".join(parts[i] for i in kept)
        if key in found:
            raise CheckpointError(
                f"Two tensors are the same part of the network: {printable(found[key])} and "
                f"{printable(name)}.",
                fix="Save the weights of one network in a separate file.",
            )
        found[key] = name
    return found, tuple(wrappers)


def lead_of(names: Iterable[str], pattern: str) -> str | None:
    """The prefix of the key that matches ``pattern``; None if no key matches."""
    regex = re.compile(rf"(?:^|\.)({pattern})$")
    found = [lead for name in names if (lead := _lead(*_plain(name), regex)) is not None]
    return min(found, key=len, default=None)


def printable(text: str) -> str:
    """A name from a file in a form that is safe to show: printable, on one line, shortened."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 120 else f"{shown[:100]}…"


def _hits(name: str) -> Iterable[tuple[Layout, str, str]]:
    """The layouts that a name matches, each with the matched part and the prefix before it."""
    parts, plain = _plain(name)
    if plain.endswith(_ENDS):
        for layout, part, pattern in _PATTERNS:
            if (lead := _lead(parts, plain, pattern)) is not None:
                yield layout, part, lead


def _lead(parts: list[str], plain: str, pattern: re.Pattern[str]) -> str | None:
    """The prefix before the match in a name, including wrappers and the last dot."""
    if not (match := pattern.search(plain)):
        return None
    before = plain[: match.start(1)].count(".")
    return "".join(f"{part}." for part in parts[: _kept(parts)[before]])


def _plain(name: str) -> tuple[list[str], str]:
    """The components of a name, and the name without wrappers."""
    parts = name.split(".")
    return parts, ".".join(parts[i] for i in _kept(parts))


def _kept(parts: list[str]) -> list[int]:
    """Indices of the components that are not wrappers; the last one is never a wrapper."""
    last = len(parts) - 1
    return [i for i, part in enumerate(parts) if i == last or not WRAPPER.fullmatch(part)]
