"""Overlays: a result drawn over its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from eomt_deploy.result import Segmentation
    from eomt_deploy.segments import Segment
    from eomt_deploy.sources import RgbImage

INSTANCE_SHADES = (1.0, 0.72, 0.86, 0.6)
"""Brightness factors that distinguish the instances of one class."""
SMALLEST_LABEL = 0.004
"""Minimum area of a region with a label, as a share of the image."""


def draw_overlay(
    result: Segmentation, image: RgbImage, *, alpha: float, labels: bool, min_score: float
) -> Image.Image:
    """Draw colours, outlines and class names over a copy of ``image`` (uint8 RGB [H, W, 3])."""
    # Small images are enlarged, so that names and outlines are readable.
    scale = max(1, min(round(480 / min(result.size)), 2048 // max(result.size)))
    height, width = result.size[0] * scale, result.size[1] * scale
    canvas: npt.NDArray[Any] = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    minimum = min_score if result.task == "instance" else 0
    shown = [s for s in result.regions() if s.area and not s.score < minimum]
    tags: list[tuple[str, tuple[int, int], tuple[int, int, int]]] = []
    # Large regions come first, so that small ones stay visible on top.
    for segment in sorted(shown, key=lambda s: -s.area):
        mask: npt.NDArray[Any] = segment.mask.astype(np.uint8)
        color = _color(result, segment)
        if scale > 1:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        inside = mask.astype(bool)
        canvas[inside] = (canvas[inside] * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)
        if segment.thing:
            outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(canvas, outline, -1, (255, 255, 255), 1, cv2.LINE_AA)
        if labels and segment.area >= SMALLEST_LABEL * result.size[0] * result.size[1]:
            text = segment.class_name
            if segment.thing and result.task != "semantic":
                text += f" {segment.score:.2f}"
            tags.append((text, _centre(mask), color))
    for text, centre, color in tags:
        _write(canvas, text, centre, color)
    return Image.fromarray(canvas)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Images of the same height in one row, with a gap of 4 pixels."""
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (sum(p.width for p in pictures) + 4 * (len(pictures) - 1), height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + 4
    return row


def _color(result: Segmentation, segment: Segment) -> tuple[int, int, int]:
    red, green, blue = result.classes[segment.class_id].color
    if not segment.thing or result.task == "semantic":
        return red, green, blue
    shade = INSTANCE_SHADES[segment.id % len(INSTANCE_SHADES)]
    return round(red * shade), round(green * shade), round(blue * shade)


def _centre(mask: npt.NDArray[Any]) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the region's border, which is always inside the region."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    _, _, _, (x, y) = cv2.minMaxLoc(distance)
    return x - 1, y - 1


def _write(
    canvas: npt.NDArray[Any],
    text: str,
    centre: tuple[int, int],
    color: tuple[int, int, int],
) -> None:
    height, width = canvas.shape[:2]
    size = max(0.4, min(height, width) / 1100)
    weight = 1 if size < 0.8 else 2
    (text_width, text_height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, weight)
    x = min(max(2, centre[0] - text_width // 2), max(2, width - text_width - 2))
    y = min(max(text_height + 2, centre[1] + text_height // 2), height - base - 2)
    back = tuple(c // 3 for c in color)
    cv2.rectangle(canvas, (x - 3, y - text_height - 3), (x + text_width + 3, y + base), back, -1)
    cv2.putText(
        canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), weight, cv2.LINE_AA
    )
