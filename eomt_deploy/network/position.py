"""Position embeddings: resampling of learned ones to another image size, and rotary ones."""

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

    Bicubic with antialiasing, as in timm's ``resample_abs_pos_embed``, which the official code
    uses.

    Args:
        pos_embed: embeddings on the old grid.
        old_grid: (rows, columns) before.
        new_grid: (rows, columns) after.
        offset: if it is not 0, it is added to the new size to compute the scale factor, and there
            is no antialiasing. DINOv2's code does this (0.1) for models without registers.
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
    """Rotary position embedding of DINOv3 for all tokens (arXiv 2508.10104, section 3.2).

    Channel i of the first half of a head and channel i of the second half form a pair. The angles
    of half of the pairs depend on the row of a patch's centre, those of the others on its column,
    both from -1 to 1 over the image. Queries, class token and registers are not rotated.

    Args:
        grid: (rows, columns) of patches.
        plain: number of tokens before the patches, which are not rotated.
        head_width: number of channels of an attention head, a multiple of 4.
        theta: base of the frequencies.

    Returns:
        cosines and sines [plain + rows * columns, head width]. The sines of the first half are
        negated, so that ``x * cos + swapped(x) * sin`` rotates ``x``.
    """
    centres = (2 * (torch.arange(size) + 0.5) / size - 1 for size in grid)
    rows, columns = (2 * math.pi * places for places in centres)
    return axial_table(rows, columns, plain, head_width, theta)


def axial_table(rows: Tensor, columns: Tensor, plain: int, head_width: int, theta: float) -> Rope:
    """As :func:`rope_table`, for any positions.

    Args:
        rows: angle of each row at the highest frequency, in radians, [h].
        columns: angle of each column, likewise, [w].
        plain: see :func:`rope_table`.
        head_width: see :func:`rope_table`.
        theta: see :func:`rope_table`.
    """
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
