"""What an overlay shows: one map of numbers, and the properties of each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.classes import display_name
from eomt_deploy.drawing.colors import Color, choose_colors
from eomt_deploy.drawing.style import SHOWN_SCORE, OverlayStyle

if TYPE_CHECKING:
    from eomt_deploy.result import Segmentation
    from eomt_deploy.segments import Segment

Map = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Region:
    """A region to be drawn.

    Attributes:
        number: its value in the map.
        class_id: id of its class.
        name: class name for display.
        thing: whether it is drawn as an instance.
        score: 0 to 1.
        area: number of pixels in the result.
        box: bounding box (x0, y0, x1, y1), x1 and y1 exclusive; None for a semantic class.
        color: RGB.
    """

    number: int
    class_id: int
    name: str
    thing: bool
    score: float
    area: int
    box: tuple[int, int, int, int] | None
    color: Color


def find_regions(result: Segmentation, style: OverlayStyle) -> tuple[Map, list[Region]]:
    """The regions of a result, stuff first, then things, each by decreasing area.

    Returns:
        uint8 or uint16 [H, W], and the regions. Other values of the map are not drawn.
    """
    if result.task == "semantic":
        assert result.labels is not None
        return result.labels, _classes(result, style)
    minimum = style.min_score
    if minimum is None:
        minimum = SHOWN_SCORE if result.task == "instance" else 0
    shown = [s for s in result.segments if s.area and s.score >= minimum]
    shown.sort(key=lambda segment: (segment.thing, -segment.area))
    if result.labels is not None:
        labels: Map = result.labels
        numbers = [segment.id + 1 for segment in shown]
    else:
        labels = _painted(shown, result.size)
        numbers = [index + 1 for index in range(len(shown))]
    given = [
        None if s.thing or style.palette != "classes" else result.classes[s.class_id].color
        for s in shown
    ]
    keys = [segment.id if segment.thing else segment.class_id for segment in shown]
    colors = choose_colors(given, keys, style.palette)
    return labels, [
        Region(n, s.class_id, display_name(s.class_name), s.thing, s.score, s.area, s.box, color)
        for n, s, color in zip(numbers, shown, colors, strict=True)
    ]


def _classes(result: Segmentation, style: OverlayStyle) -> list[Region]:
    areas = areas_of(result.labels)[: len(result.classes)]
    present = sorted(np.flatnonzero(areas).tolist(), key=lambda i: -int(areas[i]))
    given = [result.classes[i].color if style.palette == "classes" else None for i in present]
    colors = choose_colors(given, present, style.palette)
    return [
        Region(i, i, display_name(result.classes[i].name), False, 1.0, int(areas[i]), None, color)
        for i, color in zip(present, colors, strict=True)
    ]


def areas_of(labels: Any) -> npt.NDArray[np.int64]:
    """Number of pixels of each value."""
    if labels.dtype == np.uint8 and labels.size:  # a histogram is faster
        counts = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])
        if labels.size < 1 << 24:  # float32 counts exactly
            return counts.reshape(-1).astype(np.int64)
    return np.bincount(labels.reshape(-1), minlength=np.iinfo(labels.dtype).max + 1)


def _painted(segments: list[Segment], size: tuple[int, int]) -> Map:
    """A map of segments that overlap; a later one covers the earlier ones."""
    labels = np.zeros(size, np.uint8 if len(segments) < 256 else np.uint16)
    for index, segment in enumerate(segments):
        x0, y0, x1, y1 = segment.box
        mask = segment.mask[y0:y1, x0:x1].view(np.uint8)
        cv2.copyTo(np.full_like(labels[y0:y1, x0:x1], index + 1), mask, labels[y0:y1, x0:x1])
    return labels
