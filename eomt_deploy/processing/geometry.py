"""Position of an image in the network's input. All sizes are (H, W) in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eomt_deploy.errors import ImageError
from eomt_deploy.spec import ResizeRule

Size = tuple[int, int]

MAX_WINDOWS = 64
"""Maximum aspect ratio of a scaled image: more windows would not fit in memory."""


@dataclass(frozen=True)
class Geometry:
    """How one image was resized and padded or cut; maps results back to the image.

    Attributes:
        image_size: size of the original image.
        scaled_size: size of the image after resizing.
        input_size: size of one network input.
        windows: [start, end) of each window along ``axis``; empty for a letterbox, which has
            the scaled image at the top left and 0 elsewhere.
        axis: 0 if windows slide down, 1 if they slide right.
    """

    image_size: Size
    scaled_size: Size
    input_size: Size
    windows: tuple[tuple[int, int], ...] = ()
    axis: int = 1

    @property
    def num_inputs(self) -> int:
        """Number of network inputs for this image."""
        return max(1, len(self.windows))

    @property
    def merged_size(self) -> Size:
        """Size of all windows together; if there are no windows, of one network input."""
        return self.scaled_size if len(self.windows) > 1 else self.input_size


def plan(image_size: Size, input_size: Size, rule: ResizeRule) -> Geometry:
    """The official geometry of an image.

    Raises:
        ImageError: the aspect ratio of the image is too extreme.
    """
    if rule == "windows":
        scaled = cover_size(image_size, input_size)
        if max(s / i for s, i in zip(scaled, input_size, strict=True)) > MAX_WINDOWS:
            raise ImageError(
                f"The image of {image_size[0]}x{image_size[1]} pixels needs more than "
                f"{MAX_WINDOWS} windows of {input_size[0]}x{input_size[1]}.",
                why="Its aspect ratio is too extreme.",
                fix="Cut the image into pieces that are closer to a square.",
            )
        axis = 0 if scaled[0] * input_size[1] > scaled[1] * input_size[0] else 1
        windows = window_spans(scaled[axis], input_size[axis])
        return Geometry(image_size, scaled, input_size, windows, axis)
    scaled = letterbox_size(image_size, input_size)
    if min(scaled) < 1:
        raise ImageError(
            f"The image of {image_size[0]}x{image_size[1]} pixels shrinks to "
            f"{scaled[0]}x{scaled[1]} in a network input of {input_size[0]}x{input_size[1]}.",
            why="Its aspect ratio is too extreme.",
            fix="Cut the image into pieces that are closer to a square.",
        )
    return Geometry(image_size, scaled, input_size)


def cover_size(image_size: Size, input_size: Size) -> Size:
    """Smallest scaled size that covers the input. Halves are rounded to even."""
    return _scaled(image_size, max(input_size[0] / image_size[0], input_size[1] / image_size[1]))


def letterbox_size(image_size: Size, input_size: Size) -> Size:
    """Largest scaled size that fits into the input. Halves are rounded to even."""
    return _scaled(image_size, min(input_size[0] / image_size[0], input_size[1] / image_size[1]))


def _scaled(image_size: Size, factor: float) -> Size:
    return round(image_size[0] * factor), round(image_size[1] * factor)


def window_spans(length: int, window: int) -> tuple[tuple[int, int], ...]:
    """[start, end) of the official overlapping windows over ``length`` pixels.

    Rounding down can leave the last pixel uncovered (from 8 windows on), for which the official
    code returns NaN. Only then is the last window moved to the end.
    """
    count = math.ceil(length / window)
    overlap = (count * window - length) / (count - 1) if count > 1 else 0
    starts = [int(index * (window - overlap)) for index in range(count)]
    starts[-1] = max(starts[-1], length - window)
    return tuple((start, start + window) for start in starts)
