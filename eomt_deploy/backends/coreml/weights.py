"""Smaller weights: INT8 with scales, or a palette of a few values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
GROUP = 16
"""Output channels that share a palette, if their number is a multiple of it; else all do."""
ROUNDS = 30
"""Maximum number of rounds of k-means; the error hardly changes after ten."""


def quantized(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Round a matrix to 255 equal steps per output channel.

    Args:
        weight: float [D_out, D_in].

    Returns:
        int8 [D_out, D_in], from -127 to 127, and the steps [D_out, 1] in the type of ``weight``.
    """
    exact = weight.astype(np.float32)
    scale = (np.abs(exact).max(axis=1, keepdims=True) / 127).astype(weight.dtype)
    # A step that is zero in FP16 would divide by zero; the row is then zero, too.
    steps = np.where(scale > 0, scale, 1).astype(np.float32)
    rounded = np.clip(np.rint(exact / steps), -127, 127)
    return np.where(scale > 0, rounded, 0).astype(np.int8), scale


def palettized(weight: Array, bits: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Replace each value by the nearest of ``2**bits`` values, chosen by k-means per group.

    Args:
        weight: float [D_out, D_in].
        bits: bits of an index, at most 8.

    Returns:
        indices, uint8 [D_out, D_in], and palettes [groups, 1, 2**bits, 1] in the type of
        ``weight``.
    """
    rows = GROUP if len(weight) % GROUP == 0 else len(weight)
    groups = weight.reshape(-1, rows * weight.shape[1])
    indices = np.empty(groups.shape, np.uint8)
    palettes = np.empty((len(groups), 1 << bits), weight.dtype)
    for number, group in enumerate(groups):
        exact = group.astype(np.float64)
        palettes[number] = _centres(exact, 1 << bits)
        indices[number] = np.searchsorted(_borders(palettes[number].astype(np.float64)), exact)
    return indices.reshape(weight.shape), palettes[:, None, :, None]


def _centres(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Centres of k-means in one dimension, sorted: on sorted values, a cluster is a range."""
    ordered = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    centres = _first_centres(ordered, count)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, _borders(centres))
        edges = np.concatenate(([0], ends, [len(ordered)]))
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        moved = np.where(sizes > 0, means, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _first_centres(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Many centres where values are frequent, but fewer than in proportion: for a small squared
    error, their density is the cube root of that of the values (Panter and Dite, 1951)."""
    heights, edges = np.histogram(values, 4 * count)
    share = np.concatenate(([0.0], np.cumsum(np.cbrt(heights))))
    wanted = (np.arange(count) + 0.5) / count * share[-1]
    return np.asarray(np.interp(wanted, share, edges))


def _borders(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The values between neighbours, where the nearest centre changes."""
    return (centres[1:] + centres[:-1]) / 2
