"""Masks as runs of pixels, and their conversion to COCO's run-length encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as coco_mask

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask."""
Rle = dict[str, Any]
"""COCO's compressed run-length encoding: ``{"size": [H, W], "counts": bytes}``."""


def encode_mask(mask: npt.NDArray[np.bool_]) -> Rle:
    """Convert a boolean mask [H, W] to COCO RLE."""
    rle: Rle = coco_mask.encode(np.asarray(mask, dtype=bool))
    return rle


def decode_mask(rle: Rle) -> npt.NDArray[np.bool_]:
    """Convert COCO RLE to a boolean mask [H, W]."""
    return np.asarray(coco_mask.decode(rle), dtype=bool)


@dataclass(frozen=True, eq=False)
class RunMask:
    """A mask as runs of consecutive pixels, row by row.

    Attributes:
        size: (H, W) of the image.
        box: bounding box of the mask.
        area: number of pixels.
        runs: uint32 [R, 2], start and end (exclusive) of each run, as indices into the flattened
            mask [H * W]. They are in ascending order, and there is a gap between two runs.
    """

    size: tuple[int, int]
    box: Box
    area: int
    runs: npt.NDArray[np.uint32]

    @classmethod
    def empty(cls, size: tuple[int, int]) -> RunMask:
        return cls(size, (0, 0, 0, 0), 0, np.zeros((0, 2), np.uint32))

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_]) -> RunMask:
        """Convert a boolean mask [H, W]."""
        size = mask.shape[0], mask.shape[1]
        flat = np.ascontiguousarray(mask, bool).reshape(-1)
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat.size and flat[0]:
            edges = np.insert(edges, 0, 0)
        if len(edges) % 2:
            edges = np.append(edges, flat.size)
        runs = edges.reshape(-1, 2)
        if len(runs) == 0:
            return cls.empty(size)
        first, last = runs[:, 0], runs[:, 1] - 1
        width = size[1]
        x0, x1 = int((first % width).min()), int((last % width).max()) + 1
        if (first // width != last // width).any():  # a run that continues in the next row
            x0, x1 = 0, width
        box = x0, int(first[0]) // width, x1, int(last[-1]) // width + 1
        return cls(size, box, int((runs[:, 1] - first).sum()), runs.astype(np.uint32))

    def unpack(self) -> npt.NDArray[np.bool_]:
        """The mask, boolean [H, W]."""
        mask = np.zeros(self.size, bool)
        if self.area:
            flat = mask.reshape(-1)
            edges = self.runs.reshape(-1).astype(np.int64)
            # Alternating lengths of gaps and runs, without the gap at the end.
            lengths = np.diff(edges, prepend=edges[0])
            inside = np.arange(len(lengths)) % 2 == 1
            flat[edges[0] : edges[-1]] = np.repeat(inside, lengths)
        return mask
