"""The legend: a strip beside the image with the classes of a result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.classes import display_name
from eomt_deploy.drawing.fonts import text_mask
from eomt_deploy.drawing.regions import Region
from eomt_deploy.spec import ClassInfo

BACK, TEXT = 24, 235
"""Grey values."""
LONGEST_NAME = 24
"""Maximum number of characters of a name."""
MOST_COLORS = 4
"""Maximum number of instances whose colours are shown."""


def draw_legend(
    canvas: npt.NDArray[Any], classes: tuple[ClassInfo, ...], regions: Sequence[Region], size: int
) -> npt.NDArray[Any]:
    """The image with a strip at its right: colours, name, number of instances and share of pixels.

    The classes are sorted by their areas. If not all fit, the last line has the number of the
    others.

    Args:
        canvas: uint8 RGB [H, W, 3].
        classes: all classes of the model, which determine the width.
        regions: see :func:`find_regions`.
        size: height of the font in pixels.
    """
    height = canvas.shape[0]
    gap = max(2, size // 3)
    names = tuple(_shortened(display_name(info.name)) for info in classes)
    name_width, share_width = _width(names, size), text_mask("100.0%", size).shape[1]
    strip = np.full((height, size + name_width + share_width + 4 * gap, 3), BACK, np.uint8)
    rows = _rows(regions)
    row_height = size + gap
    fitting = max(1, (height - gap) // row_height)
    shown = rows if len(rows) <= fitting else rows[: fitting - 1]
    y = gap
    for members in shown:
        pixels = sum(region.area for region in members)
        count = f" ×{len(members)}" if members[0].thing and len(members) > 1 else ""
        stripes = [region.color for region in members[:MOST_COLORS]]
        swatch = strip[y : y + size, gap : gap + size]
        for index, color in enumerate(stripes):
            first, last = (swatch.shape[1] * i // len(stripes) for i in (index, index + 1))
            swatch[:, first:last] = color
        _write(strip, _shortened(members[0].name) + count, 2 * gap + size, y, size)
        part = min(1, pixels / (height * canvas.shape[1]))  # instances can overlap
        share = text_mask(_percent(part), size)
        _paste(strip, share, strip.shape[1] - gap - share.shape[1], y, size)
        y += row_height
    if len(shown) < len(rows):
        _write(strip, f"+ {len(rows) - len(shown)}", 2 * gap + size, y, size)
    return np.hstack([canvas, strip])


def _rows(regions: Sequence[Region]) -> list[list[Region]]:
    """The regions of each class, the largest class first."""
    rows: dict[int, list[Region]] = {}
    for region in regions:
        rows.setdefault(region.class_id, []).append(region)
    return sorted(rows.values(), key=lambda row: -sum(region.area for region in row))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.001 else "<0.1%"


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


@lru_cache(maxsize=16)
def _width(names: tuple[str, ...], size: int) -> int:
    """Width of the longest name, with the number of its instances."""
    longest = sorted(names, key=len)[-8:]  # the widest one is among the longest
    return max(int(text_mask(f"{name} ×99", size).shape[1]) for name in longest)


def _write(strip: npt.NDArray[Any], text: str, x: int, y: int, size: int) -> None:
    _paste(strip, text_mask(text, size), x, y, size)


def _paste(strip: npt.NDArray[Any], mask: npt.NDArray[np.uint8], x: int, y: int, size: int) -> None:
    """Write a text; what is outside the strip is cut off."""
    y += max(0, (size - mask.shape[0]) // 2)
    target = strip[y : y + mask.shape[0], x : x + mask.shape[1]]
    opacity = mask[: target.shape[0], : target.shape[1], None] / 255
    target[:] = target * (1 - opacity) + TEXT * opacity
