"""Weights a transformer block at a time: a model may be larger than the memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

# Some large models keep their blocks in chunks: blocks.<chunk>.<block>.
_STORED = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(?:\d+\.)?(\d{1,9})\.")


def block_of(name: str) -> int | None:
    """The transformer block that a tensor belongs to, in any layout; None for all the rest."""
    match = _STORED.search(name)
    return int(match[1]) if match else None


class BlockwiseTensors(Mapping[str, Tensor]):
    """Tensors by name; only those of the block that was asked for last are kept.

    Args:
        shapes: all tensors on the meta device.
        read: gives all tensors of one block, or the rest.

    Iteration goes block by block.
    """

    def __init__(
        self, shapes: Mapping[str, Tensor], read: Callable[[int | None], Mapping[str, Tensor]]
    ) -> None:
        order = sorted(shapes, key=lambda name: -1 if (b := block_of(name)) is None else b)
        self.shapes = {name: shapes[name] for name in order}
        self._read = read
        self._kept: tuple[int | None, Mapping[str, Tensor]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.block(block_of(name))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def block(self, index: int | None) -> Mapping[str, Tensor]:
        """All tensors of a block, or of the rest."""
        if self._kept is None or self._kept[0] != index:
            self._kept = None  # before the next are read: two blocks need twice the memory
            self._kept = (index, self._read(index))
        return self._kept[1]


def by_block(names: Iterable[str]) -> dict[int | None, list[str]]:
    """Names grouped by :func:`block_of`."""
    groups: dict[int | None, list[str]] = {None: []}
    for name in names:
        groups.setdefault(block_of(name), []).append(name)
    return groups
