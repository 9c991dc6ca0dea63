"""ViT-Adapter: a convolutional branch that exchanges features with a plain ViT (step 0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.architecture import Architecture
from eomt_deploy.benchmarking.paper.baseline.deformable import (
    DeformableAttention,
    Grid,
    Sampling,
    count_cells,
)
from eomt_deploy.benchmarking.paper.baseline.encoders import as_map
from eomt_deploy.network.eomt import Backbone

STAGES = 4
"""Number of exchanges between the branches, evenly distributed over the ViT."""
EXTRA_EXTRACTORS = 2
"""Number of additional extractors after the last stage."""
STEM = 64
"""Channels of the convolutional stem."""
FFN_RATIO = 0.25
NORM_EPS = 1e-6


def _conv(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class SpatialPrior(nn.Module):
    """Convolutions that compute maps of width D at 1/4, 1/8, 1/16 and 1/32 from the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, STEM, 2), _conv(STEM, STEM, 1), _conv(STEM, STEM, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        self.downs = nn.ModuleList(
            [_conv(STEM, 2 * STEM, 2), _conv(2 * STEM, 4 * STEM, 2), _conv(4 * STEM, 4 * STEM, 2)]
        )
        self.widen = nn.ModuleList(nn.Conv2d(n * STEM, width, 1) for n in (1, 2, 4, 4))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = [self.stem(pixels)]
        for down in self.downs:
            maps.append(down(maps[-1]))
        return [widen(x) for widen, x in zip(self.widen, maps, strict=True)]


class Injector(nn.Module):
    """Attention of the patch tokens to the pyramid."""

    def __init__(self, width: int, attention: DeformableAttention) -> None:
        super().__init__()
        self.norm_patches = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_pyramid = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = attention
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, patches: Tensor, pyramid: Tensor) -> Tensor:
        taken = self.attention(self.norm_patches(patches), self.norm_pyramid(pyramid))
        patches = patches + self.gamma * taken
        return patches


class Extractor(nn.Module):
    """Attention of the pyramid to the patch tokens, followed by a convolutional FFN."""

    def __init__(self, width: int, attention: DeformableAttention, grids: list[Grid]) -> None:
        super().__init__()
        hidden = int(width * FFN_RATIO)
        self.grids = grids
        self.norm_pyramid = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_patches = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = attention
        self.norm_ffn = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, pyramid: Tensor, patches: Tensor) -> Tensor:
        taken = self.attention(self.norm_pyramid(pyramid), self.norm_patches(patches))
        pyramid = pyramid + taken
        x = self.fc1(self.norm_ffn(pyramid)).split(count_cells(self.grids), dim=1)
        mixed = [self.mix(as_map(part, g)) for part, g in zip(x, self.grids, strict=True)]
        x = torch.cat([part.flatten(2).transpose(1, 2) for part in mixed], dim=1)
        pyramid = pyramid + self.fc2(F.gelu(x))
        return pyramid


class AdapterEncoder(nn.Module):
    """ViT with ViT-Adapter.

    Args:
        arch: architecture of the ViT; its depth must be a multiple of 4.
        image: (H, W) in pixels, multiples of 32.
        heads, ratio: settings of the deformable attention.
        sampling: kernel of the deformable attention.
    """

    def __init__(
        self, arch: Architecture, image: Grid, *, heads: int, ratio: float, sampling: Sampling
    ) -> None:
        super().__init__()
        width = arch.width
        self.grids = [(image[0] // step, image[1] // step) for step in (4, 8, 16, 32)]
        patches, pyramid = [self.grids[2]], self.grids[1:]
        self.backbone = Backbone(arch, patches[0])
        self.prior = SpatialPrior(width)
        self.level = nn.Parameter(torch.zeros(3, width))

        def attention(queries: list[Grid], values: list[Grid]) -> DeformableAttention:
            return DeformableAttention(
                width, heads, queries, values, ratio=ratio, sampling=sampling
            )

        self.injectors = nn.ModuleList(
            Injector(width, attention(patches, pyramid)) for _ in range(STAGES)
        )
        self.extractors = nn.ModuleList(
            Extractor(width, attention(pyramid, patches), pyramid)
            for _ in range(STAGES + EXTRA_EXTRACTORS)
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in self.grids)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised ``pixels`` [B, 3, H, W] -> maps [B, D, h, w], from the finest."""
        backbone, layers = self.backbone, self.backbone.layers
        finest, *maps = self.prior(pixels)
        pyramid = torch.cat(
            [x.flatten(2).transpose(1, 2) + self.level[i] for i, x in enumerate(maps)], dim=1
        )
        x = backbone.patch_embed(pixels) + backbone.pos_embed
        prefix = backbone.prefix().expand(x.shape[0], -1, -1)
        count = prefix.shape[1]
        rope = backbone.rope()
        step = len(layers) // STAGES
        for stage in range(STAGES):
            x = torch.cat([prefix, self.injectors[stage](x, pyramid)], dim=1)
            for block in layers[stage * step : (stage + 1) * step]:
                x = block(x, rope)
            prefix, x = x[:, :count], x[:, count:]
            pyramid = self.extractors[stage](pyramid, x)
        for extractor in self.extractors[STAGES:]:
            pyramid = extractor(pyramid, x)

        parts = torch.split(pyramid, count_cells(self.grids[1:]), dim=1)
        maps = [as_map(part, g) for part, g in zip(parts, self.grids[1:], strict=True)]
        maps = [self.up(maps[0]) + finest, *maps]
        vit = as_map(backbone.norm(x), self.grids[2])
        return [
            norm(own + F.interpolate(vit, grid, mode="bilinear", align_corners=False))
            for norm, own, grid in zip(self.norms, maps, self.grids, strict=True)
        ]
