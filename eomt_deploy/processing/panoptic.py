"""Panoptic segmentation: every pixel at most one segment, by the official merging rule.

Three steps, of which only the middle one looks at pixels: :func:`choose_queries`,
:func:`paint_queries` (on a GPU its kernel), :func:`make_segments`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.geometry import Size
from eomt_deploy.processing.resize import Float, sigmoid, softmax
from eomt_deploy.result import Segment, Segmentation
from eomt_deploy.spec import ClassInfo, Thresholds

VOID = -1
Counts = npt.NDArray[np.integer]
Found = list[tuple[int, float]]
"""Class id and score of each segment, by segment id."""


@dataclass(frozen=True)
class Chosen:
    """The K queries that may become segments: int [K], int [K], float32 [K]."""

    queries: npt.NDArray[np.intp]
    class_ids: npt.NDArray[np.intp]
    scores: Float


@dataclass(frozen=True)
class Painted:
    """Which chosen query owns each pixel, and how many pixels they have.

    Attributes:
        owner: int [H, W], index into the chosen queries; -1 where there is none, or where
            the owner's own mask is off.
        mask_areas: [K] pixels of each mask.
        won: [K] pixels that each query won, also where its own mask is off.
        seen: [K] pixels that each query won inside its own mask.
    """

    owner: npt.NDArray[np.integer]
    mask_areas: Counts
    won: Counts
    seen: Counts


def merge_segments(
    class_logits: Float,
    mask_at: Callable[[int], Float],
    size: Size,
    stuff: Container[int],
    thresholds: Thresholds,
) -> tuple[npt.NDArray[np.int32], Found]:
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
    chosen = choose_queries(class_logits, thresholds.score)
    painted = paint_queries(chosen, mask_at, size, thresholds.mask)
    return make_segments(chosen, painted, stuff, thresholds.overlap)


def choose_queries(class_logits: Float, score_threshold: float) -> Chosen:
    """Queries [Q, C+1] that see a class, and surely enough."""
    probabilities = softmax(class_logits)
    class_ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    no_object = probabilities.shape[1] - 1
    kept = np.flatnonzero((class_ids != no_object) & (scores > score_threshold))
    return Chosen(kept, class_ids[kept], scores[kept])


def paint_queries(
    chosen: Chosen, mask_at: Callable[[int], Float], size: Size, mask_threshold: float
) -> Painted:
    """Give every pixel to the query with the highest class score x mask probability."""
    count = len(chosen.queries)
    owner = np.full(size, VOID, np.int32)
    best = np.full(size, -np.inf, np.float32)
    inside = np.zeros(size, bool)  # is the owner's own mask on here?
    mask_areas = np.zeros(count, np.int64)
    for index, query in enumerate(chosen.queries):
        mask = sigmoid(mask_at(int(query)))
        on = mask >= mask_threshold
        mask_areas[index] = on.sum()
        weighted = chosen.scores[index] * mask
        wins = weighted > best  # strictly: the first query wins ties, as argmax does
        np.copyto(owner, index, where=wins)
        np.copyto(best, weighted, where=wins)
        np.copyto(inside, on, where=wins)
    won = np.bincount(owner.ravel() + 1, minlength=count + 1)[1:]
    seen = np.bincount(owner[inside], minlength=count)
    owner[~inside] = VOID
    return Painted(owner, mask_areas, won, seen)


def make_segments(
    chosen: Chosen, painted: Painted, stuff: Container[int], overlap_threshold: float
) -> tuple[npt.NDArray[np.int32], Found]:
    """Keep the queries that won enough of their mask, and join those of one stuff class.

    Returns:
        as :func:`merge_segments`.
    """
    # The last entry is for pixels without owner, whose index is -1.
    segment_of = np.full(len(chosen.queries) + 1, VOID, np.int32)
    found: Found = []
    stuff_segment: dict[int, int] = {}
    for index, class_id in enumerate(chosen.class_ids.tolist()):
        if painted.mask_areas[index] == 0 or painted.seen[index] == 0:
            continue
        # A query's share counts all that it won, also where its own mask is off.
        if painted.won[index] / painted.mask_areas[index] < overlap_threshold:
            continue
        if class_id in stuff and class_id in stuff_segment:
            segment_of[index] = stuff_segment[class_id]
            continue
        segment_of[index] = len(found)
        stuff_segment[class_id] = len(found)
        found.append((class_id, float(chosen.scores[index])))
    return segment_of[painted.owner], found


def panoptic_result(
    segment_map: npt.NDArray[np.int32], found: Found, classes: tuple[ClassInfo, ...]
) -> Segmentation:
    """What :func:`merge_segments` returns, as a result."""
    return Segmentation(
        task="panoptic",
        size=(segment_map.shape[0], segment_map.shape[1]),
        classes=classes,
        segment_map=segment_map,
        segments=tuple(
            Segment.from_mask(segment_id, classes[class_id], score, segment_map == segment_id)
            for segment_id, (class_id, score) in enumerate(found)
        ),
    )
