"""Panoptic segmentation: each pixel belongs to at most one segment (official merging rule).

:func:`choose_queries` needs only class logits and :func:`join_queries` only areas. The steps
between and after them read pixels; on a GPU, they are kernels.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.pixel_labels import label_type
from eomt_deploy.processing import pixels
from eomt_deploy.processing.compiled import Float
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment
from eomt_deploy.spec import ClassInfo, Thresholds

VOID = -1


@dataclass(frozen=True)
class Chosen:
    """The K queries that may become segments: int [K], int [K], float32 [K]."""

    queries: npt.NDArray[np.intp]
    class_ids: npt.NDArray[np.intp]
    scores: Float


@dataclass(frozen=True)
class Painted:
    """The chosen query that owns each pixel, and the areas of each chosen query.

    Attributes:
        owner: int16 [H, W], index into the chosen queries; -1 if there is none, or if the mask
            of the owner is off at this pixel.
        areas: int [3, K], in pixels: area of each mask; pixels that each query won, even where
            its mask is off; pixels that it won inside its mask.
    """

    owner: npt.NDArray[np.int16]
    areas: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MergedSegment:
    """Class, score and area of a segment, without its pixels."""

    class_id: int
    score: float
    area: int


def segment_panoptic(
    class_logits: Float,
    mask_logits: npt.NDArray[np.floating],
    geometry: Geometry,
    classes: tuple[ClassInfo, ...],
    thresholds: Thresholds,
    threads: int | None = None,
) -> Segmentation:
    """The segments of one image.

    Args:
        class_logits: [Q, C+1].
        mask_logits: [Q, h, w].
        geometry: geometry of the image.
        classes: all classes of the model; a stuff class becomes at most one segment.
        thresholds: score, mask and overlap thresholds; all three apply.
        threads: number of CPU threads; None uses all.
    """
    chosen = choose_queries(class_logits, thresholds.score)
    if len(chosen.queries) == 0:
        return nothing(geometry.image_size, classes)
    resize = pixels.mask_resize(mask_logits.shape[-2:], geometry)
    masks = np.asarray(mask_logits[chosen.queries], np.float32)
    owner, areas = pixels.paint_queries(masks, resize, chosen.scores, thresholds.mask, threads)
    painted = Painted(owner, areas)
    return panoptic_result(chosen, painted, classes, thresholds.overlap, threads)


def choose_queries(class_logits: Float, score_threshold: float) -> Chosen:
    """The queries whose best class is not "no object" and scores above the threshold.

    ``class_logits`` is [Q, C+1].
    """
    probabilities = pixels.softmax(class_logits)
    class_ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    no_object = probabilities.shape[1] - 1
    kept = np.flatnonzero((class_ids != no_object) & (scores > score_threshold))
    return Chosen(kept, class_ids[kept], scores[kept])


def panoptic_result(
    chosen: Chosen,
    painted: Painted,
    classes: tuple[ClassInfo, ...],
    overlap_threshold: float,
    threads: int | None = None,
) -> Segmentation:
    """Turn painted queries into segments."""
    stuff = frozenset(c.id for c in classes if not c.thing)
    segment_of, found = join_queries(chosen, painted.areas, stuff, overlap_threshold)
    labels, boxes = pixels.label_segments(painted.owner, segment_of, threads)
    return Segmentation(
        task="panoptic",
        size=(labels.shape[0], labels.shape[1]),
        classes=classes,
        labels=labels,
        segments=tuple(
            Segment.from_map(index, classes[s.class_id], s.score, labels, s.area, box)
            for index, (s, box) in enumerate(zip(found, boxes, strict=True))
        ),
    )


def nothing(size: Size, classes: tuple[ClassInfo, ...]) -> Segmentation:
    """The result if no query is chosen."""
    return Segmentation("panoptic", size, classes, labels=np.zeros(size, label_type(1)))


def join_queries(
    chosen: Chosen,
    areas: npt.NDArray[np.int64],
    stuff: Container[int],
    overlap_threshold: float,
) -> tuple[npt.NDArray[np.int32], list[MergedSegment]]:
    """Keep the queries that won enough of their mask, and merge those of the same stuff class.

    Returns:
        int32 [K + 1], the segment of each chosen query, or -1 (the last entry is for pixels
        without an owner and always -1); and the segments in order.
    """
    segment_of = np.full(len(chosen.queries) + 1, VOID, np.int32)
    found: list[MergedSegment] = []
    stuff_segment: dict[int, int] = {}
    for index, (class_id, score) in enumerate(
        zip(chosen.class_ids.tolist(), chosen.scores.tolist(), strict=True)
    ):
        mask_area, won, seen = areas[:, index].tolist()
        if mask_area == 0 or seen == 0:
            continue
        # As in the official code, pixels that a query won outside its mask count, too.
        if won / mask_area < overlap_threshold:
            continue
        if class_id in stuff and class_id in stuff_segment:
            first = stuff_segment[class_id]
            segment_of[index] = first
            area = found[first].area + seen
            found[first] = MergedSegment(class_id, found[first].score, area)
            continue
        segment_of[index] = len(found)
        stuff_segment[class_id] = len(found)
        found.append(MergedSegment(class_id, score, seen))
    return segment_of, found
