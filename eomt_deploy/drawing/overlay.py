"""Draw an overlay: colours, outlines, boxes, labels and the legend, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy.drawing.colors import Color, label_colors
from eomt_deploy.drawing.fonts import Mask, text_mask
from eomt_deploy.drawing.legend import draw_legend
from eomt_deploy.drawing.placement import Place, place_labels
from eomt_deploy.drawing.regions import Map, Region, find_regions
from eomt_deploy.drawing.style import OverlayStyle

if TYPE_CHECKING:
    from eomt_deploy.result import Segmentation
    from eomt_deploy.sources import RgbImage

Canvas = npt.NDArray[Any]
LIGHT, DARK = 0.6, 0.6
"""Shares of white in the light line of an outline, and of black in the dark line."""
LONGEST_LABEL = 32
"""Maximum number of characters of a class name in a label."""


def draw_overlay(result: Segmentation, image: RgbImage, style: OverlayStyle) -> RgbImage:
    """Draw a result over a copy of its image.

    Args:
        result: a result of the size of the image.
        image: uint8 RGB [H, W, 3], which does not change.
        style: what is drawn, and how.

    Returns:
        uint8 RGB [H, W, 3]; with a legend it is wider.
    """
    labels, regions = find_regions(result, style)
    labels = np.ascontiguousarray(labels)
    if style.masks and regions and style.alpha > 0:
        canvas: Canvas = _filled(image, labels, regions, style.alpha)
    else:
        canvas = np.array(image, np.uint8, order="C")
    height, width = result.size
    line = max(1, round(min(height, width) / 720))
    if style.outlines and regions:
        _draw_outlines(canvas, labels, regions, line)
    if style.boxes:
        for region in regions:
            if region.thing and region.box:
                _draw_box(canvas, region.box, region.color, line)
    size = text_size(height, width, style.font_scale)
    if style.labels and regions:
        _draw_labels(canvas, labels, regions, style.scores, size, line)
    if style.legend:
        canvas = draw_legend(canvas, result.classes, regions, size)
    return canvas


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Images of the same height in one row, with a gap of 4 pixels."""
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (sum(p.width for p in pictures) + 4 * (len(pictures) - 1), height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + 4
    return row


def text_size(height: int, width: int, scale: float) -> int:
    """Height of the font in pixels: 11 for 320x240, 13 for VGA, 23 for Full HD, 42 for 4K."""
    usual = min(max(11, 5 + 0.017 * min(height, width)), 64)
    return max(6, round(usual * scale))


def _table(labels: Map, regions: Sequence[Region], values: Sequence[Any], width: int) -> Any:
    """A look-up table from the values of the map; 0 for those that are not drawn."""
    shape = (np.iinfo(labels.dtype).max + 1, width) if width else np.iinfo(labels.dtype).max + 1
    table = np.zeros(shape, np.uint8 if len(regions) < 256 else np.uint16)
    table[[region.number for region in regions]] = values
    return table


def _looked_up(labels: Map, table: Any) -> Any:
    """``table[labels]``; OpenCV is several times faster for 8 bits."""
    if labels.dtype != np.uint8 or table.dtype != np.uint8:
        return np.take(table, labels, axis=0)
    if table.ndim == 1:
        return cv2.LUT(labels, table)
    return cv2.LUT(cv2.cvtColor(labels, cv2.COLOR_GRAY2RGB), table.reshape(1, 256, 3))


def _filled(image: RgbImage, labels: Map, regions: Sequence[Region], alpha: float) -> Canvas:
    """The image with the colours of the regions."""
    colors = _table(labels, regions, [r.color for r in regions], 3).astype(np.uint8)
    canvas = np.array(image, np.uint8, order="C")
    blended = cv2.addWeighted(canvas, 1 - alpha, _looked_up(labels, colors), alpha, 0)
    shown = _table(labels, regions, [1] * len(regions), 0).astype(np.uint8)
    cv2.copyTo(blended, _looked_up(labels, shown), canvas)
    return canvas


def _draw_outlines(canvas: Canvas, labels: Map, regions: Sequence[Region], line: int) -> None:
    """A light line inside the border of each region, and a dark line around each thing.

    One of the two is visible on any background, also around small regions. Where two regions meet,
    the one that comes later has the light line: a thing, or the smaller one.
    """
    order = _looked_up(labels, _table(labels, regions, range(1, len(regions) + 1), 0))
    stuff = sum(not region.thing for region in regions)
    flat = canvas.reshape(-1, 3)
    around = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * line + 1, 2 * line + 1))
    if stuff < len(regions):
        highest = cv2.dilate(order, around)
        dark = np.flatnonzero((highest > order) & (highest > stuff))
        flat[dark] = np.take((np.arange(256) * (1 - DARK)).astype(np.uint8), flat[dark])
    light = np.flatnonzero(order > cv2.erode(order, around))
    table = np.zeros((len(regions) + 1, 3), np.uint8)
    table[1:] = np.array([region.color for region in regions]) * (1 - LIGHT) + 255 * LIGHT
    flat[light] = np.take(table, order.reshape(-1)[light], axis=0)


def _draw_box(canvas: Canvas, box: tuple[int, int, int, int], color: Color, line: int) -> None:
    x0, y0, x1, y1 = box
    for around, shade, thickness in ((line, (0, 0, 0), line), (0, color, line)):
        corners = (x0 - around, y0 - around), (x1 - 1 + around, y1 - 1 + around)
        cv2.rectangle(canvas, *corners, shade, thickness)


def _draw_labels(
    canvas: Canvas, labels: Map, regions: Sequence[Region], scores: bool, size: int, line: int
) -> None:
    masks: list[Mask] = []
    for region in regions:
        text = region.name
        if len(text) > LONGEST_LABEL:
            text = text[: LONGEST_LABEL - 1] + "…"
        masks.append(
            text_mask(f"{text} {region.score:.2f}" if scores and region.thing else text, size)
        )
    border = max(2, size // 5)
    sizes = [(mask.shape[1] + 2 * border, mask.shape[0] + 2 * border) for mask in masks]
    places = place_labels(labels, regions, sizes)
    for place in places:
        if place.target is not None:
            _draw_line(canvas, place, regions[place.region].color, line)
    for place in places:
        _draw_label(canvas, place, masks[place.region], regions[place.region].color, border)


def _draw_line(canvas: Canvas, place: Place, color: Color, line: int) -> None:
    assert place.target is not None
    x0, y0, x1, y1 = place.rectangle
    x, y = place.target
    start = min(max(x, x0), x1 - 1), min(max(y, y0), y1 - 1)
    for shade, thickness in (((0, 0, 0), line + 2), (color, line)):
        cv2.line(canvas, start, (x, y), shade, thickness, cv2.LINE_AA)
        cv2.circle(canvas, (x, y), line + thickness // 2, shade, -1, cv2.LINE_AA)


def _draw_label(canvas: Canvas, place: Place, mask: Mask, color: Color, border: int) -> None:
    x0, y0, x1, y1 = place.rectangle
    back, ink = label_colors(color)
    label = canvas[y0:y1, x0:x1]
    label[:] = np.array(back) * 0.35  # a dark frame of one pixel
    label[1:-1, 1:-1] = back
    share = np.arange(256)[:, None] / 255
    tones = (np.array(back) * (1 - share) + np.array(ink) * share + 0.5).astype(np.uint8)
    label[border:-border, border:-border] = tones[mask]
