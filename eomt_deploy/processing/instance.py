"""Instance segmentation: the official top 100 over queries and classes.

Three steps: :func:`rank_queries`, :func:`measure_masks` (on a GPU: its kernel) and
:func:`instance_result`. Only the second one reads pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.masks import RunMask
from eomt_deploy.processing import pixels
from eomt_deploy.processing.compiled import Float
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment
from eomt_deploy.spec import ClassInfo

TOP_K = 100


@dataclass(frozen=True)
class Candidate:
    """A query with one of its classes; ``score`` is the class score, without mask quality."""

    query: int
    class_id: int
    score: float


@dataclass(frozen=True)
class Measured:
    """A mask and the mean mask probability inside it (0 for an empty mask)."""

    mask: RunMask
    quality: float

    @classmethod
    def of(cls, mask: RunMask, inside: float) -> Measured:
        """The measured mask, from ``inside``: the sum of the mask probabilities inside it."""
        return cls(mask, inside / (mask.area + 1e-6))


def segment_instances(
    class_logits: Float,
    mask_logits: npt.NDArray[np.floating],
    geometry: Geometry,
    classes: tuple[ClassInfo, ...],
    score_threshold: float,
    threads: int | None = None,
) -> Segmentation:
    """The instances of one image, highest score first.

    Args:
        class_logits, mask_logits, geometry, classes, threads: as in
            :func:`~eomt_deploy.processing.panoptic.segment_panoptic`.
        score_threshold: minimum final score: class score times mean mask probability inside the
            mask. 0 keeps all 100, as the evaluation requires.
    """
    candidates = rank_queries(class_logits, score_threshold)
    queries = list(dict.fromkeys(candidate.query for candidate in candidates))
    measured = measure_masks(mask_logits, queries, geometry, threads)
    return instance_result(candidates, measured, score_threshold, geometry.image_size, classes)


def rank_queries(class_logits: Float, score_threshold: float) -> list[Candidate]:
    """The top 100 over queries and classes that can reach the threshold, highest score first."""
    scores = pixels.softmax(class_logits)[:, :-1]
    flat = scores.ravel()
    lowest = np.partition(flat, -TOP_K)[-TOP_K] if len(flat) > TOP_K else 0
    # The mask quality is at most 1: a class score below the threshold cannot reach it.
    possible = np.flatnonzero((flat >= lowest) & (flat >= score_threshold))
    order = possible[np.argsort(-flat[possible], kind="stable")[:TOP_K]]
    queries, class_ids = np.unravel_index(order, scores.shape)
    return [
        Candidate(query, class_id, float(scores[query, class_id]))
        for query, class_id in zip(queries.tolist(), class_ids.tolist(), strict=True)
    ]


def measure_masks(
    mask_logits: npt.NDArray[np.floating],
    queries: Sequence[int],
    geometry: Geometry,
    threads: int | None = None,
) -> dict[int, Measured]:
    """The masks of the given queries at image size, by query; ``mask_logits`` is [Q, h, w]."""
    resize = pixels.mask_resize(mask_logits.shape[-2:], geometry)
    masks = np.asarray(mask_logits, np.float32)
    found = pixels.measure_masks(masks, queries, resize, threads)
    return {
        query: Measured.of(mask, inside)
        for query, (mask, inside) in zip(queries, found, strict=True)
    }


def instance_result(
    candidates: list[Candidate],
    measured: Mapping[int, Measured],
    score_threshold: float,
    size: Size,
    classes: tuple[ClassInfo, ...],
) -> Segmentation:
    """The candidates whose final score reaches the threshold, highest score first.

    Args:
        candidates: candidates from :func:`rank_queries`.
        measured: mask of each query; the classes of a query share it.
        score_threshold: minimum final score.
        size: (H, W) of the image.
        classes: all classes of the model.
    """
    found = [(c.score * measured[c.query].quality, c) for c in candidates]
    kept = sorted((f for f in found if f[0] >= score_threshold), key=lambda f: -f[0])
    return Segmentation(
        task="instance",
        size=size,
        classes=classes,
        segments=tuple(
            Segment.from_mask(index, classes[c.class_id], score, measured[c.query].mask)
            for index, (score, c) in enumerate(kept)
        ),
    )
