"""Networks larger than the memory: the weights of a block are read when it runs, then freed.

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
"""Returns a parameter of a network by name."""
Weights = Mapping[str, Tensor]


class StreamedBlock(Block):
    """A block without values of its own: its weights are read each time it runs.

    Args:
        arch: widths and counts.
        read: returns a copy of a block's weights in float32, which may be changed.
        index: number of the block.
    """

    def __init__(self, arch: Architecture, read: Callable[[int], Weights], index: int) -> None:
        with torch.device("meta"):
            super().__init__(arch)
        self._source = (arch, read, index)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        # Copies for tracing have fake tensors, which are not on the meta device.
        if self.norm1.weight.is_meta:
            return self.loaded().forward(x, rope)
        return super().forward(x, rope)

    def loaded(self) -> Block:
        """The block with its weights in memory."""
        arch, read, index = self._source
        with torch.device("meta"):
            block = Block(arch)
        block.load_state_dict(read(index), assign=True)
        return block.eval().requires_grad_(False)


def stream_blocks(model: EoMT, read: Callable[[int], Weights]) -> None:
    """Replace the blocks of ``model`` by :class:`StreamedBlock`, which read weights lazily."""
    for index in range(model.arch.depth):
        model.backbone.blocks[index] = StreamedBlock(model.arch, read, index)


def parameter_values(model: EoMT) -> Values:
    """Access to the parameters of a folded network.

    Those of streamed blocks are read and folded one block at a time.
    """
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
    assert isinstance(block, StreamedBlock)  # only these have no values
    loaded = block.loaded()
    fold_block(loaded)
    return loaded.state_dict()
