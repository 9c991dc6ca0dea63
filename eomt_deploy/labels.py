"""Convert the result of any task to one class per pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eomt_deploy.drawing import SHOWN_SCORE
from eomt_deploy.pixel_labels import VOID
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment


def shown_segments(result: Segmentation) -> list[Segment]:
    """The segments that are shown to users; instances only from a score of 0.5."""
    minimum = SHOWN_SCORE if result.task == "instance" else 0
    return [segment for segment in result.segments if segment.score >= minimum]


def label_map(result: Segmentation) -> npt.NDArray[np.int32]:
    """Class of every pixel, int32 [H, W]; -1 for no class. Better instances hide worse ones."""
    if result.class_map is not None:
        return result.class_map
    labels = np.full(result.size, VOID, np.int32)
    for segment in reversed(shown_segments(result)):
        labels[segment.mask] = segment.class_id
    return labels
