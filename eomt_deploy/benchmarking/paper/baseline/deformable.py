"""Multi-scale deformable attention: each query samples a few learned locations of each map."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
"""Height and width of a feature map."""
Sampling = Literal["grid_sample", "triton"]
"""``grid_sample``: plain PyTorch, runs and exports everywhere; ``triton``: one fused kernel, for
NVIDIA GPUs only."""


def count_cells(grids: list[Grid]) -> list[int]:
    """Number of cells of each map."""
    return [height * width for height, width in grids]


def cell_centres(grids: list[Grid]) -> Tensor:
    """Centres of all cells of all maps, float [cells, 2] as (x, y) from 0 to 1."""
    maps = []
    for height, width in grids:
        y = (torch.arange(height) + 0.5) / height
        x = (torch.arange(width) + 0.5) / width
        maps.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(maps)


def describe_grids(grids: list[Grid]) -> Tensor:
    """Height, width and index of the first cell of each map, int32 [L, 3]."""
    starts = accumulate(count_cells(grids), initial=0)
    rows = [(*grid, start) for grid, start in zip(grids, starts, strict=False)]
    return torch.tensor(rows, dtype=torch.int32)


def sample(value: Tensor, grids: list[Grid], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples at ``places``; values outside the maps are zero.

    Args:
        value: [B, cells, heads, d], the concatenated cells of all maps.
        grids: sizes of the L maps.
        places: [B, n, heads, L, points, 2] as (x, y) from 0 to 1.
        weights: [B, n, heads, L, points].

    Returns:
        [B, n, heads * d].
    """
    heads, width = value.shape[2:]
    places = 2 * places - 1  # grid_sample takes -1 to 1
    parts = []
    for level, cells in enumerate(torch.split(value, count_cells(grids), dim=1)):
        picture = cells.permute(0, 2, 3, 1).reshape(-1, width, *grids[level])
        where = places[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * heads, n, points, 2]
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
        found = F.grid_sample(picture, where, mode="bilinear", align_corners=False)
        parts.append((found * share).sum(dim=-1))  # [B * heads, d, n]
    total = sum(parts[1:], start=parts[0])
    return total.reshape(-1, heads * width, total.shape[2]).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Deformable attention from the cells of some maps to ``points`` locations of other maps.

    Args:
        width: channels D of queries and maps.
        heads: number of attention heads.
        queries: sizes of the maps whose cells are the queries.
        values: sizes of the maps that are sampled.
        ratio: channels of the values as a share of ``width``.
        points: number of locations per head and map.
        sampling: kernel, see :data:`Sampling`.
    """

    reference: Tensor
    cell: Tensor
    geometry: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        queries: list[Grid],
        values: list[Grid],
        *,
        ratio: float = 1.0,
        points: int = 4,
        sampling: Sampling = "grid_sample",
    ) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.heads, self.points, self.grids, self.sampling = heads, points, values, sampling
        self.value = nn.Linear(width, inner)
        self.offset = nn.Linear(width, heads * len(values) * points * 2)
        self.weight = nn.Linear(width, heads * len(values) * points)
        self.out = nn.Linear(inner, width)
        centres = cell_centres(queries)[:, None, None, None]  # [n, 1, 1, 1, 2]
        self.register_buffer("reference", centres, persistent=False)
        # Offsets are in cells of the sampled map.
        sizes = torch.tensor([[1 / width, 1 / height] for height, width in values])[:, None]
        self.register_buffer("cell", sizes, persistent=False)  # [L, 1, 2]
        self.register_buffer("geometry", describe_grids(values), persistent=False)
        self._spread()

    @torch.no_grad()
    def _spread(self) -> None:
        """Initialize the offsets so that memory is accessed as in a trained network.

        Each head samples in its own direction, and each further point at a greater distance.
        """
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None]
        reach = torch.arange(1, self.points + 1)[:, None]
        spread = (direction * reach).expand(-1, len(self.grids), -1, -1)
        self.offset.bias.copy_(spread.reshape(-1))

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """``queries`` [B, n, D] and ``values`` [B, cells, D] -> [B, n, D]."""
        levels = len(self.grids)
        value = self.value(values).unflatten(-1, (self.heads, -1))
        offset = self.offset(queries).unflatten(-1, (self.heads, levels, self.points, 2))
        weight = self.weight(queries).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        weight = weight.unflatten(-1, (levels, self.points))
        places = self.reference + offset * self.cell
        if self.sampling == "triton":
            from eomt_deploy.benchmarking.paper.baseline.deformable_triton import sample_fused

            found = sample_fused(value, self.geometry, places, weight)
        else:
            found = sample(value, self.grids, places, weight)
        return cast("Tensor", self.out(found))
