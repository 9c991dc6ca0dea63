"""Deformable sampling as one fused kernel for NVIDIA GPUs. Importing it requires Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Number of queries per program."""


def _sample(
    value: tl.tensor,
    geometry: tl.tensor,
    places: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    queries: tl.tensor,
    cells: tl.tensor,
    heads: tl.tensor,
    LEVELS: tl.constexpr,  # noqa: N803  # Triton's style for constants
    POINTS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    PADDED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Sample for a block of queries of one head of one image; sums are FP32."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    channels = tl.arange(0, PADDED)
    live = rows < queries
    real = (channels < WIDTH)[None, :]
    query = (image * queries + rows) * heads + head
    base = value + (image * cells * heads + head) * WIDTH
    total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for level in range(LEVELS):
        height = tl.load(geometry + 3 * level)
        width = tl.load(geometry + 3 * level + 1)
        start = tl.load(geometry + 3 * level + 2)
        for point in range(POINTS):
            at = (query * LEVELS + level) * POINTS + point
            x = tl.load(places + 2 * at, mask=live, other=0).to(tl.float32) * width - 0.5
            y = tl.load(places + 2 * at + 1, mask=live, other=0).to(tl.float32) * height - 0.5
            share = tl.load(weights + at, mask=live, other=0).to(tl.float32)
            left = tl.floor(x)
            top = tl.floor(y)
            for corner in tl.static_range(4):
                column = left + corner % 2
                row = top + corner // 2
                inside = live & (column >= 0) & (column < width) & (row >= 0) & (row < height)
                near = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row)) * share
                cell = start + row.to(tl.int32) * width + column.to(tl.int32)
                found = tl.load(
                    base + cell[:, None] * heads * WIDTH + channels[None, :],
                    mask=inside[:, None] & real,
                    other=0,
                )
                total += near[:, None] * found.to(tl.float32)
    tl.store(
        out + query[:, None] * WIDTH + channels[None, :],
        total.to(out.dtype.element_ty),
        mask=live[:, None] & real,
    )


_kernel = triton.jit(_sample)


def sample_fused(value: Tensor, geometry: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Compute :func:`eomt_deploy.benchmarking.paper.baseline.deformable.sample` in one kernel.

    Args:
        value: [B, cells, heads, d].
        geometry: int32 [L, 3], height, width and index of the first cell of each map.
        places: [B, n, heads, L, points, 2] as (x, y) from 0 to 1.
        weights: [B, n, heads, L, points].

    Returns:
        [B, n, heads * d].
    """
    images, cells, heads, width = value.shape
    queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    out = torch.empty((images, queries, heads * width), dtype=value.dtype, device=value.device)
    _kernel[(triton.cdiv(queries, BLOCK), images * heads)](
        value.contiguous(),
        geometry,
        places.contiguous(),
        weights.contiguous(),
        out,
        queries,
        cells,
        heads,
        LEVELS=levels,
        POINTS=points,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        BLOCK=BLOCK,
    )
    return out
