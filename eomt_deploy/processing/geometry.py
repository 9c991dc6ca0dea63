"""Where the pixels of an image stand in the network's input. All sizes are (H, W)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eomt_deploy.errors import ImageError
from eomt_deploy.spec import ResizeRule

Size = tuple[int, int]

MAX_WINDOWS = 64
"""Aspect ratio from which the scores of all windows would fill the memory."""


@dataclass(frozen=True)
class Geometry:
    """How one image was brought to the network's input, kept to bring results back.

    Attributes:
        image_size: the image as given.
        scaled_size: the image after resizing.
        input_size: one network input.
        windows: [start, end) of each window along ``axis``; empty for a letterbox, where
            the scaled image stands at the top left and the rest is 0.
        axis: 0 when windows slide down, 1 when they slide right.
    """

    image_size: Size
    scaled_size: Size
    input_size: Size
    windows: tuple[tuple[int, int], ...] = ()
    axis: int = 1

    @property
    def num_inputs(self) -> int:
        """Network inputs that this image makes."""
        return max(1, len(self.windows))

    @property
    def merged_size(self) -> Size:
        """All windows together; one network input where there are none."""
        return self.scaled_size if len(self.windows) > 1 else self.input_size


def plan(image_size: Size, input_size: Size, rule: ResizeRule) -> Geometry:
    """The official geometry of an image.

    Raises:
        ImageError: the image is so thin that nothing is left of a side.
    """
    if rule == "windows":
        scaled = cover_size(image_size, input_size)
        if max(s / i for s, i in zip(scaled, input_size, strict=True)) > MAX_WINDOWS:
            raise ImageError(
                f"An image of {image_size[0]}x{image_size[1]} is so thin that it would take more "
                f"than {MAX_WINDOWS} windows of {input_size[0]}x{input_size[1]}.",
                fix="Cut the image into less extreme pieces.",
            )
        axis = 0 if scaled[0] * input_size[1] > scaled[1] * input_size[0] else 1
        windows = window_spans(scaled[axis], input_size[axis])
        return Geometry(image_size, scaled, input_size, windows, axis)
    scaled = letterbox_size(image_size, input_size)
    if min(scaled) < 1:
        raise ImageError(
            f"An image of {image_size[0]}x{image_size[1]} shrinks to {scaled[0]}x{scaled[1]} "
            f"in an input of {input_size[0]}x{input_size[1]}: nothing is left of it.",
            fix="Cut the image into less extreme pieces.",
        )
    return Geometry(image_size, scaled, input_size)


def cover_size(image_size: Size, input_size: Size) -> Size:
    """Scaled size whose smaller side fills the input. ``round`` is half to even."""
    return _scaled(image_size, max(input_size[0] / image_size[0], input_size[1] / image_size[1]))


def letterbox_size(image_size: Size, input_size: Size) -> Size:
    """Largest scaled size that fits into the input. ``round`` is half to even."""
    return _scaled(image_size, min(input_size[0] / image_size[0], input_size[1] / image_size[1]))


def _scaled(image_size: Size, factor: float) -> Size:
    return round(image_size[0] * factor), round(image_size[1] * factor)


def window_spans(length: int, window: int) -> tuple[tuple[int, int], ...]:
    """[start, end) of the official overlapping windows over ``length`` pixels.

    Flooring can leave the very last pixel uncovered (first seen with 8 windows: the official
    result is NaN there); the last window is moved to the end then, and only then.
    """
    count = math.ceil(length / window)
    overlap = (count * window - length) / (count - 1) if count > 1 else 0
    starts = [int(index * (window - overlap)) for index in range(count)]
    starts[-1] = max(starts[-1], length - window)
    return tuple((start, start + window) for start in starts)
