"""How certain a semantic result is about each pixel. It is only computed if somebody asks."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.compiled import Float
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.semantic import class_probabilities

QUERIES_AT_ONCE = 16


def winning_share(
    class_logits: Float,
    mask_logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.unsignedinteger],
    geometry: Geometry,
) -> Float:
    """The score of each pixel's class, divided by the sum of the scores of all classes.

    A score is the official one: class probability x mask probability, summed over the queries and
    averaged over the windows. It is not a calibrated probability.

    Args:
        class_logits: [windows, Q, C+1].
        mask_logits: [windows, Q, h, w].
        labels: class ids [H, W] of this image.
        geometry: geometry of the image.

    Returns:
        float32 [H, W] from 1 / C to 1.
    """
    present = np.unique(labels)
    probabilities = class_probabilities(class_logits)
    weights = np.concatenate(
        [probabilities[..., present], probabilities.sum(-1, keepdims=True)], axis=-1
    )
    scores = _merged(weights, np.asarray(mask_logits, np.float32), geometry)
    height, width = geometry.image_size

    def at_image_size(score: Float) -> Float:
        resized = cv2.resize(score, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.float32)

    share = np.zeros((height, width), np.float32)
    for class_id, score in zip(present, scores[:-1], strict=True):
        here = labels == class_id
        share[here] = at_image_size(score)[here]
    share /= np.maximum(at_image_size(scores[-1]), np.finfo(np.float32).tiny)
    return np.minimum(share, 1)


def _merged(weights: Float, masks: Float, geometry: Geometry) -> Float:
    """Scores [K, H, W] of all windows together, from weights [N, Q, K]."""
    merged = np.zeros((weights.shape[-1], *geometry.merged_size), np.float32)
    count = np.zeros(geometry.merged_size, np.float32)
    height, width = geometry.input_size
    for window in range(len(masks)):
        start = geometry.windows[window][0] if len(geometry.windows) > 1 else 0
        top, left = (start, 0) if geometry.axis == 0 else (0, start)
        place = np.s_[top : top + height, left : left + width]
        count[place] += 1
        rows, columns = count[place].shape
        for first in range(0, masks.shape[1], QUERIES_AT_ONCE):
            part = masks[window, first : first + QUERIES_AT_ONCE]
            large = np.stack([
                cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) for mask in part
            ])[:, :rows, :columns]  # fmt: skip
            chosen = weights[window, first : first + QUERIES_AT_ONCE]
            with np.errstate(over="ignore"):  # 1 / infinity is 0
                mask_probabilities = 1 / (1 + np.exp(-large))
            merged[:, place[0], place[1]] += np.tensordot(chosen.T, mask_probabilities, axes=1)
    return merged / count
