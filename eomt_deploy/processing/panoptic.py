"""Panoptic segmentation: every pixel at most one segment, by the official merging rule."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.geometry import Size
from eomt_deploy.processing.resize import Float, sigmoid, softmax
from eomt_deploy.spec import Thresholds

VOID = -1


def merge_segments(
    class_logits: Float,
    mask_at: Callable[[int], Float],
    size: Size,
    stuff: Container[int],
    thresholds: Thresholds,
) -> tuple[npt.NDArray[np.int32], list[tuple[int, float]]]:
    """Segments of one image.

    Args:
        class_logits: [Q, C+1].
        mask_at: mask logits [H, W] of a query at image size, called once per kept query.
        size: image size (H, W).
        stuff: class ids of which there is at most one segment.
        thresholds: all three apply.

    Returns:
        segment map int32 [H, W] (-1 where there is none) and, for each segment id, the
        class id and the score of the query that made it.
    """
    probabilities = softmax(class_logits)
    class_ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    no_object = probabilities.shape[1] - 1
    kept = np.flatnonzero((class_ids != no_object) & (scores > thresholds.score))

    owner = np.full(size, VOID, np.int32)
    best = np.full(size, -np.inf, np.float32)
    inside = np.zeros(size, bool)  # is the owner's own mask on here?
    mask_areas = []
    for index, query in enumerate(kept):
        mask = sigmoid(mask_at(int(query)))
        on = mask >= thresholds.mask
        mask_areas.append(int(on.sum()))
        weighted = scores[query] * mask
        wins = weighted > best  # strictly: the first query wins ties, as argmax does
        np.copyto(owner, index, where=wins)
        np.copyto(best, weighted, where=wins)
        np.copyto(inside, on, where=wins)

    # A query's share counts all that it won, also where its own mask is off.
    won = np.bincount(owner.ravel() + 1, minlength=len(kept) + 1)[1:]
    seen = np.bincount(owner[inside], minlength=len(kept))
    segment_of = np.full(len(kept) + 1, VOID, np.int32)  # last entry: pixels without owner
    segments: list[tuple[int, float]] = []
    stuff_segment: dict[int, int] = {}
    for index, query in enumerate(kept):
        if mask_areas[index] == 0 or seen[index] == 0:
            continue
        if won[index] / mask_areas[index] < thresholds.overlap:
            continue
        class_id = int(class_ids[query])
        if class_id in stuff and class_id in stuff_segment:
            segment_of[index] = stuff_segment[class_id]
            continue
        segment_of[index] = len(segments)
        stuff_segment[class_id] = len(segments)
        segments.append((class_id, float(scores[query])))
    segment_map = segment_of[owner]
    segment_map[~inside] = VOID
    return segment_map, segments
