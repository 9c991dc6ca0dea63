"""Instance segmentation: the official top 100 over queries and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.resize import Float, sigmoid, softmax

TOP_K = 100


@dataclass(frozen=True)
class Instance:
    """``mask`` is bool [H, W]; instances may overlap, and share a mask between classes."""

    query: int
    class_id: int
    score: float
    mask: npt.NDArray[np.bool_]


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
    scores = softmax(class_logits)[:, :-1]
    # A mask quality is at most 1, so a class score below the threshold can be left out.
    order = np.argsort(-scores, axis=None, kind="stable")[:TOP_K]
    order = order[scores.ravel()[order] >= score_threshold]
    masks: dict[int, tuple[npt.NDArray[np.bool_], float]] = {}
    instances = []
    for query, class_id in zip(*np.unravel_index(order, scores.shape), strict=True):
        query = int(query)
        if query not in masks:
            logits = mask_at(query)
            mask = logits > 0
            inside = float(sigmoid(logits[mask]).sum(dtype=np.float64))
            quality = inside / (int(mask.sum()) + 1e-6)
            masks[query] = mask, quality
        mask, quality = masks[query]
        score = float(scores[query, class_id]) * quality
        if score >= score_threshold:
            instances.append(Instance(query, int(class_id), score, mask))
    return sorted(instances, key=lambda instance: -instance.score)
