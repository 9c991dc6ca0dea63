"""Networks larger than the memory: a block's weights are read when they are needed, then dropped.

Everything outside the blocks is small and stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from eomt_deploy.architecture import Architecture
from eomt_deploy.network.eomt import Block, EoMT
from eomt_deploy.network.folds import fold_block
from eomt_deploy.network.position import Rope

Values = Callable[[str], Tensor]
"""A network's parameter by its name."""
Weights = Mapping[str, Tensor]


class StreamedBlock(Block):
    """A block whose own weights have no values: they are read each time that it runs.

    Args:
        arch: widths and counts.
        read: gives the weights of a block, float32, in a copy that may be changed.
        index: of the block.
    """

    def __init__(self, arch: Architecture, read: Callable[[int], Weights], index: int) -> None:
        with torch.device("meta"):
            super().__init__(arch)
        self._source = (arch, read, index)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        # A copy for tracing has tensors without values that are not on the meta device.
        if self.norm1.weight.is_meta:
            return self.loaded().forward(x, rope)
        return super().forward(x, rope)

    def loaded(self) -> Block:
        """The block with weights of its own."""
        arch, read, index = self._source
        with torch.device("meta"):
            block = Block(arch)
        block.load_state_dict(read(index), assign=True)
        return block.eval().requires_grad_(False)


def stream_blocks(model: EoMT, read: Callable[[int], Weights]) -> None:
    """Let the blocks of ``model`` read their weights when they run, see :class:`StreamedBlock`."""
    for index in range(model.arch.depth):
        model.backbone.blocks[index] = StreamedBlock(model.arch, read, index)


def parameter_values(model: EoMT) -> Values:
    """The parameters of a folded network; those of streamed blocks are read and folded, a block at
    a time."""
    state = model.state_dict()
    kept: dict[int, Weights] = {}

    def value(name: str) -> Tensor:
        known: Tensor = state[name]
        if not known.is_meta:
            return known
        number, _, part = name.removeprefix("backbone.blocks.").partition(".")
        index = int(number)
        if index not in kept:
            kept.clear()
            kept[index] = _folded(model.backbone.layers[index])
        return kept[index][part]

    return value


def _folded(block: Block) -> Weights:
    assert isinstance(block, StreamedBlock)  # nothing else is without values
    loaded = block.loaded()
    fold_block(loaded)
    return loaded.state_dict()
