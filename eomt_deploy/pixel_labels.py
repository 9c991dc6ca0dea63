"""Label arrays: the number of a class or segment for each pixel, in the smallest type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.unsignedinteger[Any]]
"""[H, W]: class ids (semantic), or segment ids + 1 (panoptic), in the smallest type."""

LABEL_TYPES = (np.uint8, np.uint16)
VOID = -1
"""No class or no segment, in int32 maps."""
VOID_LABEL = 255
"""Conventional void label of 8-bit label images; more classes than this need 16 bits."""


def label_type(count: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type of ``Segmentation.labels`` with values below ``count``."""
    return np.uint8 if count <= 256 else np.uint16


def void_class(labels: Labels) -> int:
    """The class label that stands for no class: the largest value of the type."""
    return int(np.iinfo(labels.dtype).max)


def to_class_map(labels: Labels) -> npt.NDArray[np.int32]:
    """Class ids, int32 [H, W], :data:`VOID` for no class."""
    ids, void = labels.astype(np.int32), void_class(labels)
    if labels.max(initial=0) == void:
        ids[ids == void] = VOID
    return ids


def to_segment_map(labels: Labels) -> npt.NDArray[np.int32]:
    """Segment ids, int32 [H, W], :data:`VOID` for no segment."""
    ids = labels.astype(np.int32)
    ids -= 1  # faster than one step that also converts
    return ids


def only_classes(labels: Labels, ids: Iterable[int]) -> Labels:
    """The labels with these classes; all other pixels have no class."""
    return _only(labels, list(ids), void_class(labels))


def only_segments(labels: Labels, ids: Iterable[int]) -> Labels:
    """The labels with these segments; all other pixels belong to none."""
    return _only(labels, [number + 1 for number in ids], 0)


def _only(labels: Labels, kept: list[int], void: int) -> Labels:
    table = np.full(np.iinfo(labels.dtype).max + 1, void, labels.dtype)
    table[kept] = kept
    return table[labels]
