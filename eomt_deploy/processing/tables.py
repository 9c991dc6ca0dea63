"""Resize tables for the kernels: source positions and weights of each resized pixel.

All floating-point arithmetic of positions and weights is done here, once, not in the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL

from eomt_deploy.processing.geometry import Size

Int32 = npt.NDArray[np.int32]
Table = npt.NDArray[np.void]

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
PRECISION_BITS = 22
"""Fractional bits of Pillow's weights for 8-bit images."""

TAP = np.dtype([("low", "i4"), ("high", "i4"), ("rest", "f4"), ("weight", "f4")])
"""``value = values[low] * rest + values[high] * weight``; ``struct Tap`` of the kernels."""

SPAN = np.dtype([("first", "i4"), ("weights", "f4", 3)])
"""``value = sum(values[first + i] * weights[i])``; ``struct Span`` of the kernels."""


def image_table(source: int, target: int) -> tuple[Int32, Int32]:
    """Pillow's bilinear filter along one side, antialiased when shrinking.

    Follows ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's ``Resample.c`` step by
    step in float64, so that the weights are the same integers.

    Args:
        source: number of pixels before.
        target: number of pixels after.

    Returns:
        int32 [target, 2]: first source pixel and number of source pixels; int32 [target, taps]:
        weights in units of 2^-22, zero beyond that number.
    """
    scale = source / target
    support = max(scale, 1.0)  # radius of the bilinear filter: 1 pixel, larger when shrinking
    taps = int(np.ceil(support)) * 2 + 1
    centers = (np.arange(target) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), source) - first
    weights = np.zeros((target, taps))
    total = np.zeros(target)
    for tap in range(taps):  # in this order: it changes the rounding of the sum
        distance = np.abs((tap + first - centers + 0.5) * (1.0 / support))
        weight = np.where((tap < count) & (distance < 1), 1 - distance, 0)
        weights[:, tap] = weight
        total += weight
    # Pillow rounds halves away from zero. Weights of this filter are never negative.
    fixed = (0.5 + weights / total[:, None] * (1 << PRECISION_BITS)).astype(np.int32)
    return np.stack([first, count], axis=1).astype(np.int32), fixed


def shrinks_down_first(source: Size, target: Size) -> bool:
    """Whether the installed Pillow resizes the height of an image before its width.

    The intermediate bytes are rounded, so that the order changes some results by 1. Pillow resizes
    the width first, except for very tall images since 12.2 and many tall images since 13.
    """
    (height, width), (target_height, target_width) = source, target
    if target_height >= height or PILLOW < (12, 2):
        return False
    if PILLOW < (13, 0):
        return height > width * 100
    return height - target_height > 2 * (width - target_width)


def logit_table(source: int, target: int) -> Table:
    """Bilinear taps along one side: half-pixel centres, no antialiasing.

    Positions are float64 and weights float32, as in cv2 on the CPU.

    Returns:
        array [target] of type :data:`TAP`.
    """
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    low = np.clip(np.floor(position).astype(np.int32), 0, source - 1)
    table = np.zeros(target, TAP)
    table["low"] = low
    table["high"] = np.minimum(low + 1, source - 1)
    weight = np.clip(position - low, 0, 1).astype(np.float32)
    table["weight"] = np.where(low == source - 1, 0, weight)
    table["rest"] = np.float32(1) - table["weight"]
    return table


@dataclass(frozen=True)
class Band:
    """Rows [start, end) of a resized map, and the source rows that they are computed from."""

    start: int
    end: int
    source_start: int
    source_rows: int


def bands(table: Table, max_rows: int) -> Iterator[Band]:
    """Cut a resized map into bands of rows that need at most ``most_rows`` source rows each.

    ``most_rows`` below 2 counts as 2.
    """
    start = 0
    while start < len(table):
        first = int(table["low"][start])
        end = int(np.searchsorted(table["high"], first + max(max_rows, 2)))
        yield Band(start, end, first, int(table["high"][end - 1]) - first + 1)
        start = end


def composed_table(first: Table, second: Table, source: int) -> Table:
    """Combine two successive resizes along one side into one table.

    Args:
        first: :func:`logit_table` from ``source`` values to at least as many, so that two adjacent
            results depend on at most three source values.
        second: :func:`logit_table` from the first results of ``first``.
        source: number of source values, at least 3.

    Returns:
        array [target] of type :data:`SPAN`.
    """
    table = np.zeros(len(second), SPAN)
    low = first["low"][second["low"]]
    table["first"] = np.minimum(low, source - 3)
    rows = np.arange(len(second))
    weights = np.zeros((len(second), 3))
    for side, outer in (("low", "rest"), ("high", "weight")):
        between = first[second[side]]
        for end, inner in (("low", "rest"), ("high", "weight")):
            position = between[end] - table["first"]
            share = second[outer].astype(np.float64) * between[inner]
            used = share != 0  # the last pixel is its own neighbour, with weight 0
            np.add.at(weights, (rows[used], position[used]), share[used])
    table["weights"] = weights
    return table
