"""Access to weights one transformer block at a time, for models larger than the memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

# Some large models store their blocks in chunks: blocks.<chunk>.<block>.
_STORED = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(?:\d+\.)?(\d{1,9})\.")


def block_of(name: str) -> int | None:
    """Number of the transformer block of a tensor, in any layout; None outside the blocks."""
    match = _STORED.search(name)
    return int(match[1]) if match else None


class BlockwiseTensors(Mapping[str, Tensor]):
    """Tensors by name, of which only the last requested block is kept in memory.

    Iteration goes block by block.

    Args:
        shapes: all tensors on the meta device.
        read: returns all tensors of a block; for None, all tensors outside the blocks.
        outside: the tensors outside the blocks, which were already read.
    """

    def __init__(
        self,
        shapes: Mapping[str, Tensor],
        read: Callable[[int | None], Mapping[str, Tensor]],
        outside: Mapping[str, Tensor],
    ) -> None:
        order = sorted(shapes, key=lambda name: -1 if (b := block_of(name)) is None else b)
        self.shapes = {name: shapes[name] for name in order}
        self._read = read
        self._kept: tuple[int | None, Mapping[str, Tensor]] | None = (None, outside)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.block(block_of(name))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def block(self, index: int | None) -> Mapping[str, Tensor]:
        """All tensors of a block; for None, all tensors outside the blocks."""
        if self._kept is None or self._kept[0] != index:
            self._kept = None  # free the old block before the next one is read
            self._kept = (index, self._read(index))
        return self._kept[1]


def by_block(names: Iterable[str]) -> dict[int | None, list[str]]:
    """Names grouped by :func:`block_of`."""
    groups: dict[int | None, list[str]] = {None: []}
    for name in names:
        groups.setdefault(block_of(name), []).append(name)
    return groups
