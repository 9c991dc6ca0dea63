"""EVA-02 (arXiv 2303.11331) from a plain ViT, for the speed of the paper's table 2.

EVA-02 has learned position embeddings and rotary ones for the patches, a SwiGLU MLP with a
LayerNorm inside, no LayerScale and no bias of the keys. Published weights are not loaded. Converted
to our layout they would compute the same: their rotation pairs neighbouring channels, ours channel
i of a head with channel i + half (another order of the rows of query and key); their query, key and
value projections are separate, ours packed; and the position embedding of their class token is part
of our class token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.network.eomt import Backbone, SwigluMlp
from eomt_deploy.network.position import axial_table

THETA = 10_000.0
TRAINED_GRID = 16
"""Patches per side in pre-training; a larger grid is scaled to the same range of angles."""


class NormedSwiglu(SwigluMlp):
    """``fc2(norm(silu(gate) * value))``, with the packed weights of a :class:`SwigluMlp`."""

    def __init__(self, packed: SwigluMlp, norm_eps: float) -> None:
        width, hidden = packed.fc2.out_features, packed.fc2.in_features
        with torch.device("meta"):  # its own weights are replaced below
            super().__init__(width, hidden)
        self.fc1, self.fc2 = packed.fc1, packed.fc2
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        x = self.fc2(self.norm(F.silu(gate) * value))
        return x


@torch.no_grad()
def make_eva02(backbone: Backbone, grid: tuple[int, int], *, plain: int) -> None:
    """Convert a ViT with learned positions and SwiGLU to EVA-02, in place.

    Args:
        backbone: ViT with any kind of attention; its linear layers are kept.
        grid: (rows, columns) of patches.
        plain: number of tokens before the patches in its last blocks; they get no rotation.
    """
    rows, columns = (torch.arange(size) * (TRAINED_GRID / size) for size in grid)
    head_width = backbone.layers[0].attn.head_width
    cos, sin = axial_table(rows, columns, plain, head_width, THETA)
    backbone.register_buffer("rope_cos", cos, persistent=False)
    backbone.register_buffer("rope_sin", sin, persistent=False)
    for block in backbone.layers:
        block.ls1, block.ls2 = nn.Identity(), nn.Identity()
        assert isinstance(block.mlp, SwigluMlp)  # as the ladder's entry requires
        block.mlp = NormedSwiglu(block.mlp, block.norm2.eps)
        _, key_bias, _ = block.attn.qkv.bias.chunk(3)
        key_bias.zero_()
