"""Semantic segmentation: every pixel the class with the highest mean score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.resize import Float, resize_logits, sigmoid, softmax


def window_scores(class_logits: Float, mask_logits: Float, geometry: Geometry) -> Float:
    """Class scores [C, H, W] of one window at input size.

    Args:
        class_logits: [Q, C+1].
        mask_logits: [Q, h, w].
    """
    probabilities = class_probabilities(class_logits)
    height, width = geometry.input_size
    masks = np.empty((len(mask_logits), height * width), np.float32)
    for index, logits in enumerate(mask_logits):
        masks[index] = sigmoid(resize_logits(logits, geometry.input_size)).ravel()
    return (probabilities.T @ masks).reshape(-1, height, width)


def class_probabilities(class_logits: Float) -> Float:
    """[..., Q, C+1] to [..., Q, C]: "no object" takes its share and is dropped."""
    return softmax(class_logits)[..., :-1]


def merge_windows(scores: list[Float], geometry: Geometry) -> Float:
    """Mean of overlapping windows: [C, H, W] each -> [C, scaled H, scaled W]."""
    if len(scores) == 1:
        return scores[0]
    total = np.zeros((scores[0].shape[0], *merged_size(geometry)), np.float32)
    count = np.zeros(merged_size(geometry), np.float32)
    for (start, end), window in zip(geometry.windows, scores, strict=True):
        rows = slice(start, end) if geometry.axis == 0 else slice(None)
        columns = slice(start, end) if geometry.axis == 1 else slice(None)
        total[:, rows, columns] += window
        count[rows, columns] += 1
    return np.divide(total, count, out=total)


def merged_size(geometry: Geometry) -> Size:
    """(H, W) of the scores of all windows together."""
    return geometry.scaled_size if len(geometry.windows) > 1 else geometry.input_size


def class_map(class_logits: Float, mask_logits: Float, geometry: Geometry) -> npt.NDArray[np.int32]:
    """Class ids int32 [H, W] at image size.

    Args:
        class_logits: [windows, Q, C+1].
        mask_logits: [windows, Q, h, w].
        geometry: where the windows stand.
    """
    windows = [
        window_scores(classes, masks, geometry)
        for classes, masks in zip(class_logits, mask_logits, strict=True)
    ]
    merged = merge_windows(windows, geometry)
    # One class at a time: the [C, H, W] scores of a large photo would take gigabytes.
    best = resize_logits(merged[0], geometry.image_size).copy()
    labels = np.zeros(geometry.image_size, np.int32)
    for class_id in range(1, len(merged)):
        score = resize_logits(merged[class_id], geometry.image_size)
        higher = score > best  # strictly: the first class wins ties, as argmax does
        np.copyto(labels, class_id, where=higher)
        np.maximum(best, score, out=best)
    return labels
