"""One class for each pixel, of the result of any task."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eomt_deploy.result import SHOWN_SCORE, VOID, Segment, Segmentation


def shown_segments(result: Segmentation) -> list[Segment]:
    """Segments that a user sees: of an instance result only the likely ones."""
    least = SHOWN_SCORE if result.task == "instance" else 0
    return [segment for segment in result.segments if segment.score >= least]


def label_map(result: Segmentation) -> npt.NDArray[np.int32]:
    """Class of every pixel, int32 [H, W]; -1 where there is none. The best instance is on top."""
    if result.class_map is not None:
        return result.class_map
    labels = np.full(result.size, VOID, np.int32)
    for segment in reversed(shown_segments(result)):
        labels[segment.mask] = segment.class_id
    return labels
