"""Colours of classes and instances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]
"""RGB, 0 to 255."""

GOLDEN = 0.6180339887498949
TONES = ((0.72, 0.19), (0.60, 0.21), (0.84, 0.15))
"""Lightness and maximum chroma (OKLCh) that alternate from one instance to the next."""
SEQUENCE = 20
"""Number of colours of instances; the next ones would be too similar to the first."""
DISTINCT = 0.085
"""Minimum distance in OKLab between two colours of an image, as long as there are enough."""
OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
"""Okabe and Ito, "Color Universal Design" (2008), without black."""
SHADES = ((0, 0.0), (255, 0.6), (0, 0.5))
"""Grey value and its share that extend a palette: unchanged, lighter, darker."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
READABLE = 5.5
"""Minimum contrast ratio of a text (WCAG 2.1 requires 4.5)."""
BRIGHT = 0.25
"""Minimum luminance of a colour with black text. White is easier to read on medium colours than
its contrast ratio suggests."""


def to_oklab(colors: npt.NDArray[Any] | Sequence[Color]) -> npt.NDArray[np.float64]:
    """RGB (0 to 255) [N, 3] in OKLab, whose distances follow perception (Ottosson 2020)."""
    value = np.asarray(colors, np.float64).reshape(-1, 3) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(
        linear
        @ np.array(
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
    )
    return np.asarray(
        cones
        @ np.array(
            [
                [0.2104542553, 1.9779984951, 0.0259040371],
                [0.7936177850, -2.4285922050, 0.7827717662],
                [-0.0040720468, 0.4505937099, -0.8086757660],
            ]
        )
    )


def _from_oklch(lightness: float, chroma: float, turn: float) -> Color:
    """RGB of a colour in OKLCh; chroma is reduced until RGB can show it."""
    while True:
        a, b = chroma * np.cos(2 * np.pi * turn), chroma * np.sin(2 * np.pi * turn)
        cones = np.array(
            [
                lightness + 0.3963377774 * a + 0.2158037573 * b,
                lightness - 0.1055613458 * a - 0.0638541728 * b,
                lightness - 0.0894841775 * a - 1.2914855480 * b,
            ]
        )
        linear = (
            np.array(
                [
                    [4.0767416621, -3.3077115913, 0.2309699292],
                    [-1.2684380046, 2.6097574011, -0.3413193965],
                    [-0.0041960863, -0.7034186147, 1.7076147010],
                ]
            )
            @ cones**3
        )
        if linear.min() >= -1e-4 and linear.max() <= 1 + 1e-4:
            break
        chroma *= 0.96
    linear = linear.clip(0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(v * 255) for v in value.tolist())
    return red, green, blue


@cache
def instance_color(number: int) -> Color:
    """A colour for the instance ``number``.

    The hue advances by the golden ratio of a turn, so it is far from those of the last instances;
    the lightness alternates.
    """
    lightness, chroma = TONES[number % len(TONES)]
    return _from_oklch(lightness, chroma, (0.08 + number * GOLDEN) % 1)


@cache
def okabe_ito(number: int) -> Color:
    """A colour for a class or an instance; the colours repeat after 21."""
    number %= len(OKABE_ITO) * len(SHADES)
    grey, share = SHADES[number // len(OKABE_ITO)]
    red, green, blue = OKABE_ITO[number % len(OKABE_ITO)]
    return _mixed(red, grey, share), _mixed(green, grey, share), _mixed(blue, grey, share)


def _mixed(value: int, other: int, share: float) -> int:
    return round(value * (1 - share) + other * share)


def choose_colors(
    fixed: Sequence[Color | None], numbers: Sequence[int], palette: str
) -> list[Color]:
    """Colours of the regions of an image.

    A colour follows from the number of its region, so it is the same in the next frame of a video.
    Only if it is too similar to one that the image contains already, the next free one is taken.

    Args:
        fixed: colours that are given, None for those to choose.
        numbers: class id or instance id of each region.
        palette: see :class:`OverlayStyle`.
    """
    series, length = {
        "classes": (instance_color, SEQUENCE),
        "okabe-ito": (okabe_ito, len(OKABE_ITO) * len(SHADES)),
    }[palette]
    colors = list(fixed)
    used = to_oklab([color for color in fixed if color is not None])
    for index, (color, number) in enumerate(zip(fixed, numbers, strict=True)):
        if color is not None:
            continue
        candidates = [series((number + step) % length) for step in range(length)]
        positions = _oklab_series(palette, length)[(number + np.arange(length)) % length]
        distances = np.linalg.norm(positions[:, None] - used[None], axis=-1).min(
            axis=1, initial=np.inf
        )
        free = np.flatnonzero(distances >= DISTINCT)
        step = int(free[0]) if len(free) else 0
        colors[index] = candidates[step]
        used = np.vstack([used, positions[step]])
    return [color or (0, 0, 0) for color in colors]


@cache
def _oklab_series(palette: str, length: int) -> npt.NDArray[np.float64]:
    series = okabe_ito if palette == "okabe-ito" else instance_color
    return to_oklab([series(number) for number in range(length)])


@cache
def label_colors(color: Color) -> tuple[Color, Color]:
    """Colours of a label and its text, black or white, with a contrast of at least 5.5.

    The colour of the region is made lighter or darker until the contrast suffices.
    """
    text, other = (BLACK, WHITE) if _luminance(color) > BRIGHT else (WHITE, BLACK)
    back, share = color, 0.0
    while contrast(back, text) < READABLE:
        share += 0.02
        red, green, blue = (_mixed(c, o, share) for c, o in zip(color, other, strict=True))
        back = red, green, blue
    return back, text


def contrast(first: Color, second: Color) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (
        v / 12.92 if v <= 0.04045 else float(((v + 0.055) / 1.055) ** 2.4)
        for v in (c / 255 for c in color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
