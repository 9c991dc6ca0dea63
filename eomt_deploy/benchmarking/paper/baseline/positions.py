"""Fixed sine position embeddings of feature maps, as in DETR."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000


def sine_position(grid: tuple[int, int], width: int) -> Tensor:
    """Embeddings of the cells of a map (h, w), float [h * w, width]: first y, then x."""
    height, breadth = grid
    half = width // 2
    # Two neighbouring channels are the sine and cosine of one wavelength.
    wavelength = TEMPERATURE ** (2 * (torch.arange(half) // 2) / half)
    y = _wave((torch.arange(height) + 1) / height, wavelength)
    x = _wave((torch.arange(breadth) + 1) / breadth, wavelength)
    both = [y[:, None].expand(-1, breadth, -1), x[None].expand(height, -1, -1)]
    return torch.cat(both, dim=-1).flatten(0, 1)


def _wave(places: Tensor, wavelength: Tensor) -> Tensor:
    angle = places[:, None] * (2 * math.pi) / wavelength
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
