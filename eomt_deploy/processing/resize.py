"""Resizing of images to the network's input size."""

from __future__ import annotations

import numpy as np
from PIL import Image

from eomt_deploy.processing.geometry import Size
from eomt_deploy.sources import RgbImage


def resize_image(image: RgbImage, size: Size) -> RgbImage:
    """Resize uint8 RGB [H, W, 3] to ``size``: Pillow bilinear, with antialiasing when shrinking."""
    if image.shape[:2] == size:
        return image
    pil_image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pil_image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
