"""The options of an overlay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from eomt_deploy.errors import UsageError

Palette = Literal["classes", "okabe-ito"]
PALETTES: tuple[str, ...] = get_args(Palette)
SHOWN_SCORE = 0.5
"""Instances below this score are in an instance result, but not in the overlay."""
FONT_SCALES = 0.25, 8


@dataclass(frozen=True)
class OverlayStyle:
    """How a result is drawn.

    Attributes:
        alpha: opacity of the colours, 0 to 1.
        masks: fill the regions with their colours.
        outlines: draw a line around each region.
        boxes: draw the bounding boxes of things; semantic results have none.
        labels: write the class names. A label that has no free place is left out.
        scores: write the score of a thing after its name.
        legend: add a strip at the right with colour, name, number of instances and share of pixels
            of each class. The overlay is wider than the image then; the width of the strip depends
            on the classes of the model and not on the image, so all frames of a video are equal.
        palette: ``classes``: each class has its own colour, each instance of a thing another one.
            ``okabe-ito``: colours that people with colour blindness can distinguish.
        font_scale: factor on the size of the text, which follows the size of the image.
        min_score: minimum score of a segment to be drawn; None: 0.5 in an instance result, and
            all segments in the others.

    Raises:
        UsageError: a value is not allowed.
    """

    alpha: float = 0.5
    masks: bool = True
    outlines: bool = True
    boxes: bool = False
    labels: bool = True
    scores: bool = True
    legend: bool = False
    palette: Palette = "classes"
    font_scale: float = 1
    min_score: float | None = None

    def __post_init__(self) -> None:
        _check_range("alpha", self.alpha, 0, 1)
        _check_range("font_scale", self.font_scale, *FONT_SCALES)
        if self.min_score is not None:
            _check_range("min_score", self.min_score, 0, 1)
        if self.palette not in PALETTES:
            raise UsageError(
                f"There is no palette {self.palette!r}.",
                fix=f"Choose one of these: {', '.join(PALETTES)}.",
            )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(
            f"{name} must be between {low} and {high}, got {value}.",
            fix=f"Choose a value from {low} to {high}.",
        )
