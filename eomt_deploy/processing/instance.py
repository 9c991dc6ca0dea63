"""Instance segmentation: the official top 100 over queries and classes.

Three steps, of which only the middle one looks at pixels: :func:`rank_queries`,
:func:`measure_mask` (on a GPU its kernel), :func:`score_instances`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.geometry import Size
from eomt_deploy.processing.resize import Float, sigmoid, softmax
from eomt_deploy.result import Segment, Segmentation
from eomt_deploy.spec import ClassInfo

TOP_K = 100


@dataclass(frozen=True)
class Instance:
    """``mask`` is bool [H, W]; instances may overlap, and share a mask between classes."""

    query: int
    class_id: int
    score: float
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """A query seen as one class; ``score`` is the class score alone."""

    query: int
    class_id: int
    score: float


@dataclass(frozen=True)
class Measured:
    """A mask, bool [H, W], and the mean mask probability inside it (0 for an empty one)."""

    mask: npt.NDArray[np.bool_]
    quality: float


def find_instances(
    class_logits: Float, mask_at: Callable[[int], Float], score_threshold: float
) -> list[Instance]:
    """Instances of one image, best first.

    Args:
        class_logits: [Q, C+1].
        mask_at: mask logits [H, W] of a query at image size, called once per query.
        score_threshold: least final score; 0 keeps all 100, as the evaluation needs.

    The final score is the class score times the mean mask probability inside the mask.
    """
    candidates = rank_queries(class_logits, score_threshold)
    queries = dict.fromkeys(candidate.query for candidate in candidates)
    measured = {query: measure_mask(mask_at(query)) for query in queries}
    return score_instances(candidates, measured, score_threshold)


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


def measure_mask(logits: Float) -> Measured:
    """The mask of mask logits [H, W], and how sure it is."""
    mask = logits > 0
    inside = float(sigmoid(logits[mask]).sum(dtype=np.float64))
    return Measured(mask, mask_quality(inside, int(mask.sum())))


def mask_quality(inside: float, area: int) -> float:
    """Mean mask probability from its sum inside the mask and the mask's pixels."""
    return inside / (area + 1e-6)


def score_instances(
    candidates: list[Candidate], measured: Mapping[int, Measured], score_threshold: float
) -> list[Instance]:
    """Final scores of candidates, best first, those below the threshold left out.

    Args:
        candidates: from :func:`rank_queries`.
        measured: the mask of each candidate's query.
        score_threshold: least final score.
    """
    instances = []
    for candidate in candidates:
        found = measured[candidate.query]
        score = candidate.score * found.quality
        if score >= score_threshold:
            instances.append(Instance(candidate.query, candidate.class_id, score, found.mask))
    return sorted(instances, key=lambda instance: -instance.score)


def instance_result(
    instances: list[Instance], size: Size, classes: tuple[ClassInfo, ...]
) -> Segmentation:
    """What :func:`find_instances` returns, as a result for an image of ``size`` (H, W)."""
    return Segmentation(
        task="instance",
        size=size,
        classes=classes,
        segments=tuple(
            Segment.from_mask(index, classes[instance.class_id], instance.score, instance.mask)
            for index, instance in enumerate(instances)
        ),
    )
