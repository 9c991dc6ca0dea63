"""Mask2Former from encoder, pixel decoder and mask decoder: steps 0 to 3 of the ladder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from eomt_deploy.architecture import Architecture
from eomt_deploy.benchmarking.paper.baseline.adapter import AdapterEncoder
from eomt_deploy.benchmarking.paper.baseline.deformable import Grid, Sampling
from eomt_deploy.benchmarking.paper.baseline.encoders import PlainEncoder
from eomt_deploy.benchmarking.paper.baseline.mask_decoder import MaskDecoder
from eomt_deploy.benchmarking.paper.baseline.pixel_decoder import PixelDecoder, Projection
from eomt_deploy.network.masked import AttentionKind, choose_attention


class Mask2Former(nn.Module):
    """Mask2Former on a plain ViT.

    Args:
        step: 0 with ViT-Adapter, 1 with scale blocks instead, 2 also without pixel decoder,
            3 also without the scales 1/8 and 1/32.
        arch: architecture of the ViT, with the numbers of queries and classes.
        image: (H, W) in pixels, multiples of 32.
        heads, ratio: settings of the adapter's deformable attention.
        attention: kind of attention of ViT and mask decoder.
        sampling: kernel of the deformable attention.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        step: int,
        arch: Architecture,
        image: Grid,
        *,
        heads: int,
        ratio: float,
        attention: AttentionKind,
        sampling: Sampling,
    ) -> None:
        super().__init__()
        grids = [(image[0] // cell, image[1] // cell) for cell in (4, 8, 16, 32)]
        if step == 3:
            grids = [grids[0], grids[2]]
        self.register_buffer("pixel_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(1, 3, 1, 1))
        self.encoder: AdapterEncoder | PlainEncoder
        self.pixel_decoder: PixelDecoder | Projection
        if step == 0:
            self.encoder = AdapterEncoder(arch, image, heads=heads, ratio=ratio, sampling=sampling)
        else:
            patch = arch.patch_size
            grid = (image[0] // patch, image[1] // patch)
            self.encoder = PlainEncoder(arch, grid, multi_scale=step < 3)
        if step < 2:
            self.pixel_decoder = PixelDecoder(arch.width, grids, sampling)
        else:
            self.pixel_decoder = Projection(arch.width, len(grids) - 1)
        self.mask_decoder = MaskDecoder(
            grids[:0:-1],
            queries=arch.num_queries,
            classes=arch.num_classes,
            attention=attention,
        )
        choose_attention(self.encoder.backbone, attention)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment a batch.

        Args:
            images: uint8 [B, H, W, 3], RGB 0-255.

        Returns:
            class logits [B, Q, C+1] (last column "no object") and
            mask logits [B, Q, H/4, W/4], both before any activation.
        """
        x = images.to(self.pixel_mean.dtype).permute(0, 3, 1, 2)
        pixels = (x / 255 - self.pixel_mean) / self.pixel_std
        features, levels = self.pixel_decoder(self.encoder(pixels))
        return cast("tuple[Tensor, Tensor]", self.mask_decoder(features, levels))
