"""Overlays: a result drawn over its image.

We draw ourselves instead of with the annotators of supervision, because these are an optional
dependency, blend one mask after the other (slow for video) and draw labels over each other.
"""

from __future__ import annotations

from eomt_deploy.drawing.overlay import draw_overlay, side_by_side
from eomt_deploy.drawing.style import PALETTES, SHOWN_SCORE, OverlayStyle, Palette
from eomt_deploy.drawing.viewer import has_display, show_picture

__all__ = [
    "PALETTES", "SHOWN_SCORE", "OverlayStyle", "Palette", "draw_overlay", "has_display",
    "show_picture", "side_by_side",
]  # fmt: skip
