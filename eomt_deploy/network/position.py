"""Where a patch is: learned embeddings at another image size, and rotary ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosines and signed sines [tokens, head width], see :func:`rope_table`."""


def resample_position(
    pos_embed: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    offset: float = 0.0,
) -> Tensor:
    """Resample ``pos_embed`` [1, h*w, D] from one patch grid (h, w) to another.

    Bicubic with antialiasing: what timm's ``resample_abs_pos_embed`` does and
    therefore what the official code does at a size other than the trained one.

    Args:
        offset: added to the new size before the scale is taken, which is then used in place of
            that of the sizes, without antialiasing: what DINOv2's own code does (0.1) for models
            without registers.
    """
    if old_grid == new_grid:
        return pos_embed
    grid = pos_embed.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    if offset:
        scale = [(new + offset) / old for new, old in zip(new_grid, old_grid, strict=True)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=new_grid, mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def rope_table(grid: tuple[int, int], plain: int, head_width: int, theta: float) -> Rope:
    """The rotation of every token of DINOv3 (arXiv 2508.10104, section 3.2).

    A quarter of a head turns with the row and a quarter with the column of a patch's centre, both
    from -1 to 1 over the image; the other half of the head is the other side of each rotation.
    Queries, class token and registers are not turned: angle 0.

    Args:
        grid: (rows, columns) of patches.
        plain: tokens before the patches, which are not turned.
        head_width: of the attention, a multiple of 4.
        theta: base of the frequencies.

    Returns:
        cosines and sines [plain + rows * columns, head width], the sines negative in the first
        half: ``x * cos + swapped(x) * sin`` turns ``x``.
    """
    centres = (2 * (torch.arange(size) + 0.5) / size - 1 for size in grid)
    rows, columns = (2 * math.pi * places for places in centres)
    return axial_table(rows, columns, plain, head_width, theta)


def axial_table(rows: Tensor, columns: Tensor, plain: int, head_width: int, theta: float) -> Rope:
    """As :func:`rope_table`, for any places of the rows [h] and columns [w]: the angles of the
    highest frequency, in radians."""
    frequencies = theta ** -torch.arange(0, 1, 4 / head_width, dtype=torch.float32)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (places[:, :, None] * frequencies).flatten(1)  # [patches, head / 2]
    angles = F.pad(angles, (0, 0, plain, 0))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def turn(x: Tensor, rope: Rope) -> Tensor:
    """Rotate ``x`` [B, heads, tokens, head width] by :func:`rope_table`."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * sin
