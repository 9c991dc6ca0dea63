"""Instance segmentation: the official top 100 over queries and classes.

Three steps, of which only the middle one looks at pixels: :func:`rank_queries`,
:func:`measure_masks` (on a GPU its kernel), :func:`instance_result`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing import pixels
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.resize import Float, softmax
from eomt_deploy.result import PackedMask, Segment, Segmentation
from eomt_deploy.spec import ClassInfo

TOP_K = 100


@dataclass(frozen=True)
class Candidate:
    """A query seen as one class; ``score`` is the class score alone."""

    query: int
    class_id: int
    score: float


@dataclass(frozen=True)
class Measured:
    """A mask, and the mean mask probability inside it (0 for an empty one)."""

    mask: PackedMask
    quality: float

    @classmethod
    def of(cls, mask: PackedMask, inside: float) -> Measured:
        """``inside``: the sum of the mask probabilities inside the mask."""
        return cls(mask, inside / (mask.area + 1e-6))


def segment_instances(
    class_logits: Float,
    mask_logits: npt.NDArray[np.floating],
    geometry: Geometry,
    classes: tuple[ClassInfo, ...],
    score_threshold: float,
    threads: int | None = None,
) -> Segmentation:
    """The instances of one image, best first.

    Args:
        class_logits: [Q, C+1].
        mask_logits: [Q, h, w].
        geometry: where the masks stand.
        classes: all classes of the model.
        score_threshold: least final score, which is the class score times the mean mask
            probability inside the mask; 0 keeps all 100, as the evaluation needs.
        threads: CPU threads; None takes all.
    """
    candidates = rank_queries(class_logits, score_threshold)
    queries = dict.fromkeys(candidate.query for candidate in candidates)
    measured = measure_masks(mask_logits, queries, geometry, threads)
    return instance_result(candidates, measured, score_threshold, geometry.image_size, classes)


def rank_queries(class_logits: Float, score_threshold: float) -> list[Candidate]:
    """The top 100 over queries and classes that can still reach the threshold, best first."""
    scores = softmax(class_logits)[:, :-1]
    # A mask quality is at most 1, so a class score below the threshold can be left out.
    order = np.argsort(-scores, axis=None, kind="stable")[:TOP_K]
    order = order[scores.ravel()[order] >= score_threshold]
    queries, class_ids = np.unravel_index(order, scores.shape)
    return [
        Candidate(query, class_id, float(scores[query, class_id]))
        for query, class_id in zip(queries.tolist(), class_ids.tolist(), strict=True)
    ]


def measure_masks(
    mask_logits: npt.NDArray[np.floating],
    queries: Iterable[int],
    geometry: Geometry,
    threads: int | None = None,
) -> dict[int, Measured]:
    """The masks of some queries [Q, h, w] at image size, by query."""
    way = pixels.way_to_image(mask_logits.shape[-2:], geometry)

    def measure(query: int) -> tuple[int, Measured]:
        mask = np.asarray(mask_logits[query], np.float32)
        return query, Measured.of(*pixels.measure_mask(mask, way))

    return dict(pixels.in_threads(measure, list(queries), threads))


def instance_result(
    candidates: list[Candidate],
    measured: Mapping[int, Measured],
    score_threshold: float,
    size: Size,
    classes: tuple[ClassInfo, ...],
) -> Segmentation:
    """Candidates with their final scores, best first, those below the threshold left out.

    Args:
        candidates: from :func:`rank_queries`.
        measured: the mask of each candidate's query; classes of one query share it.
        score_threshold: least final score.
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
