"""Mask2Former's Transformer decoder: queries attend inside the masks of the previous layer."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.benchmarking.paper.baseline.deformable import Grid
from eomt_deploy.benchmarking.paper.baseline.pixel_decoder import WIDTH
from eomt_deploy.benchmarking.paper.baseline.positions import sine_position
from eomt_deploy.network.masked import AttentionKind, attend

LAYERS = 9
HEADS = 8
HIDDEN = 2048


class CrossAttention(nn.Module):
    """Attention with separate queries, keys and values; also used for self-attention."""

    def __init__(self, kind: AttentionKind) -> None:
        super().__init__()
        self.kind: AttentionKind = kind
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (self.q(q), self.k(k), self.v(v))
        )
        x = attend(q, k, v, allowed, scale=(WIDTH // HEADS) ** -0.5, kind=self.kind)
        return cast("Tensor", self.out(x.transpose(1, 2).flatten(2)))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and FFN, each with post-norm."""

    def __init__(self, kind: AttentionKind) -> None:
        super().__init__()
        self.cross = CrossAttention(kind)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.own = CrossAttention(kind)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor, keys: Tensor, allowed: Tensor
    ) -> Tensor:
        x = self.norm1(x + self.cross(x + position, keys, memory, allowed))
        placed = x + position
        x = self.norm2(x + self.own(placed, placed, x))
        x = self.norm3(x + self.fc2(F.relu(self.fc1(x))))
        return x


class MaskDecoder(nn.Module):
    """Nine layers that cycle through the scales; masks are predicted before and after each layer.

    Args:
        grids: sizes of the maps that the queries attend to, from the coarsest.
        queries, classes: numbers of queries and classes.
        attention: kind of attention, see :data:`eomt_deploy.network.masked.AttentionKind`.
    """

    def __init__(
        self, grids: list[Grid], *, queries: int, classes: int, attention: AttentionKind
    ) -> None:
        super().__init__()
        self.grids = grids
        self.query = nn.Embedding(queries, WIDTH)
        self.query_position = nn.Embedding(queries, WIDTH)
        self.level = nn.Embedding(len(grids), WIDTH)
        for index, grid in enumerate(grids):
            self.register_buffer(f"position_{index}", sine_position(grid, WIDTH), persistent=False)
        self.layers = nn.ModuleList(DecoderLayer(attention) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.class_head = nn.Linear(WIDTH, classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
        )  # fmt: skip

    def forward(self, features: Tensor, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C+1] and mask logits [B, Q, H/4, W/4].

        Args:
            features: [B, 256, H/4, W/4].
            levels: tokens [B, n, 256] of each map, from the coarsest.
        """
        memory = [x + self.level.weight[i] for i, x in enumerate(levels)]
        keys = [x + cast("Tensor", getattr(self, f"position_{i}")) for i, x in enumerate(memory)]
        x = self.query.weight.unsqueeze(0).expand(features.shape[0], -1, -1)
        position = self.query_position.weight
        mask_logits = self.predict_masks(x, features)
        for index, layer in enumerate(self.layers):
            at = index % len(levels)
            allowed = allowed_inside(mask_logits, self.grids[at])
            x = layer(x, position, memory[at], keys[at], allowed)
            mask_logits = self.predict_masks(x, features)
        # Class logits of the other layers are only needed for training losses.
        return self.class_head(self.norm(x)), mask_logits

    def predict_masks(self, x: Tensor, features: Tensor) -> Tensor:
        mask_logits = self.mask_head(self.norm(x)) @ features.flatten(2)
        return cast("Tensor", mask_logits.unflatten(2, tuple(features.shape[2:])))


def allowed_inside(mask_logits: Tensor, grid: Grid) -> Tensor:
    """Attention mask, bool [B, 1, Q, h * w]: True inside the mask of a query; all True if it is
    empty."""
    logits = F.interpolate(mask_logits, grid, mode="bilinear", align_corners=False)
    inside = logits.flatten(2) > 0
    # Without index assignment and branches on data, so that it can be exported.
    return (inside | ~inside.any(dim=-1, keepdim=True)).unsqueeze(1)
