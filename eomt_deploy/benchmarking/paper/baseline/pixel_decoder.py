"""Mask2Former's pixel decoder between encoder and mask decoder, and 1x1 convolutions instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.benchmarking.paper.baseline.deformable import (
    DeformableAttention,
    Grid,
    Sampling,
    count_cells,
)
from eomt_deploy.benchmarking.paper.baseline.encoders import as_map
from eomt_deploy.benchmarking.paper.baseline.positions import sine_position

WIDTH = 256
"""Channels of the pixel decoder and of the mask decoder."""
LAYERS = 6
HEADS = 8
HIDDEN = 1024
GROUPS = 32


class EncoderLayer(nn.Module):
    """Deformable self-attention over three scales and FFN, each with post-norm."""

    def __init__(self, grids: list[Grid], sampling: Sampling) -> None:
        super().__init__()
        self.attention = DeformableAttention(WIDTH, HEADS, grids, grids, sampling=sampling)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x + position, x))
        x = self.norm2(x + self.fc2(F.relu(self.fc1(x))))
        return x


class PixelDecoder(nn.Module):
    """Deformable encoder over 1/32, 1/16 and 1/8, then one FPN step to 1/4.

    Args:
        width: channels D of the encoder's maps.
        grids: sizes of the maps 1/4, 1/8, 1/16 and 1/32.
        sampling: kernel of the deformable attention.
    """

    position: Tensor

    def __init__(self, width: int, grids: list[Grid], sampling: Sampling) -> None:
        super().__init__()
        self.finest = grids[0]
        self.grids = grids[:0:-1]  # from the coarsest
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, WIDTH, 1), nn.GroupNorm(GROUPS, WIDTH))
            for _ in self.grids
        )
        self.level = nn.Parameter(torch.zeros(len(self.grids), WIDTH))
        position = [sine_position(grid, WIDTH) for grid in self.grids]
        self.register_buffer("position", torch.cat(position), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(self.grids, sampling) for _ in range(LAYERS))
        self.lateral = nn.Sequential(
            nn.Conv2d(width, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH)
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, WIDTH),
            nn.ReLU(),
        )
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute mask features [B, 256, H/4, W/4] and tokens [B, n, 256] of 1/32, 1/16 and 1/8.

        Args:
            maps: [B, D, h, w], from the finest.
        """
        coarse_first = maps[:0:-1]
        tokens = [
            project(x).flatten(2).transpose(1, 2)
            for project, x in zip(self.project, coarse_first, strict=True)
        ]
        cells = count_cells(self.grids)
        level = torch.cat([self.level[i].expand(n, -1) for i, n in enumerate(cells)])
        x = torch.cat(tokens, dim=1)
        for layer in self.layers:
            x = layer(x, self.position + level)
        levels = list(torch.split(x, cells, dim=1))
        upper = F.interpolate(
            as_map(levels[-1], self.grids[-1]), self.finest, mode="bilinear", align_corners=False
        )
        return self.mask_features(self.smooth(self.lateral(maps[0]) + upper)), levels


class Projection(nn.Module):
    """1x1 convolutions from the encoder's maps to the width of the mask decoder."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.mask_features = nn.Conv2d(width, WIDTH, 1)
        self.project = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for _ in range(levels))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Same outputs as :meth:`PixelDecoder.forward`; tokens of all maps except the finest."""
        levels = [
            project(x).flatten(2).transpose(1, 2)
            for project, x in zip(self.project, maps[:0:-1], strict=True)
        ]
        return self.mask_features(maps[0]), levels
