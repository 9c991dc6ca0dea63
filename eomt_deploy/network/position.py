"""Learned position embeddings at another image size, resampled as timm does it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resample_position(
    pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resample ``pos_embed`` [1, h*w, D] from one patch grid (h, w) to another.

    Bicubic with antialiasing: what timm's ``resample_abs_pos_embed`` does and
    therefore what the official code does at a size other than the trained one.
    """
    if old_grid == new_grid:
        return pos_embed
    grid = pos_embed.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new_grid, mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).flatten(1, 2)
