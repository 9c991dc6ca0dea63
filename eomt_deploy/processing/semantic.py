"""Semantic segmentation: each pixel gets the class with the highest mean score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eomt_deploy.processing import pixels
from eomt_deploy.processing.compiled import Float
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ClassInfo


def segment_semantic(
    class_logits: Float,
    mask_logits: npt.NDArray[np.floating],
    geometry: Geometry,
    classes: tuple[ClassInfo, ...],
    threads: int | None = None,
) -> Segmentation:
    """The class of each pixel of one image.

    Args:
        class_logits: [windows, Q, C+1].
        mask_logits: [windows, Q, h, w].
        geometry: geometry of the image.
        classes: all classes of the model.
        threads: number of CPU threads; None uses all.
    """
    labels = pixels.classify_pixels(
        class_probabilities(class_logits), np.asarray(mask_logits, np.float32), geometry, threads
    )
    return Segmentation("semantic", geometry.image_size, classes, labels=labels)


def class_probabilities(class_logits: Float) -> Float:
    """Softmax over [..., Q, C+1], then without "no object": [..., Q, C]."""
    return pixels.softmax(class_logits)[..., :-1]
