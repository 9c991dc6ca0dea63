"""Resizing of images to the network's input size, and softmax of class logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy.processing.geometry import Size
from eomt_deploy.sources import RgbImage

Float = npt.NDArray[np.float32]


def resize_image(image: RgbImage, size: Size) -> RgbImage:
    """Resize uint8 RGB [H, W, 3] to ``size``: Pillow bilinear, with antialiasing when shrinking."""
    if image.shape[:2] == size:
        return image
    pil_image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pil_image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def softmax(x: Float) -> Float:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
