"""A plain ViT and scale blocks that build a feature pyramid, without an adapter (steps 1 to 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.architecture import Architecture
from eomt_deploy.benchmarking.paper.baseline.deformable import Grid
from eomt_deploy.network.eomt import UPSCALE_NORM_EPS, Backbone, UpscaleBlock


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens [B, h * w, D] as a map [B, D, h, w]."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], *grid)


class DownscaleBlock(nn.Module):
    """Counterpart of :class:`UpscaleBlock` that halves height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=UPSCALE_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.gelu(self.conv1(x)))
        x = self.norm(x.permute(0, 2, 3, 1))  # over channels
        return x.permute(0, 3, 1, 2)


class PlainEncoder(nn.Module):
    """ViT with separate scale blocks for each scale, applied to its last feature map.

    Args:
        arch: architecture of the ViT.
        grid: (rows, columns) of patches.
        multi_scale: whether to compute 1/4, 1/8, 1/16 and 1/32, or only 1/4 and 1/16.
    """

    def __init__(self, arch: Architecture, grid: Grid, *, multi_scale: bool) -> None:
        super().__init__()
        self.grid = grid
        self.backbone = Backbone(arch, grid)
        width = arch.width
        self.to_4 = nn.Sequential(UpscaleBlock(width), UpscaleBlock(width))
        self.to_8 = UpscaleBlock(width) if multi_scale else None
        self.to_32 = DownscaleBlock(width) if multi_scale else None

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised ``pixels`` [B, 3, H, W] -> maps [B, D, h, w], from the finest."""
        backbone = self.backbone
        x = backbone.patch_embed(pixels) + backbone.pos_embed
        prefix = backbone.prefix()
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        rope = backbone.rope()
        for block in backbone.layers:
            x = block(x, rope)
        features = as_map(backbone.norm(x)[:, prefix.shape[1] :], self.grid)
        if self.to_8 is None or self.to_32 is None:
            return [self.to_4(features), features]
        return [self.to_4(features), self.to_8(features), features, self.to_32(features)]
