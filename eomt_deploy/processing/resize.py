"""The two resamplings of the reference: Pillow's for photos, torch's for logits."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.sources import RgbImage

Float = npt.NDArray[np.float32]


def resize_photo(image: RgbImage, size: Size) -> RgbImage:
    """uint8 RGB [H, W, 3] to ``size``: Pillow bilinear, antialiased when shrinking."""
    if image.shape[:2] == size:
        return image
    photo = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(photo.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_logits(logits: Float, size: Size) -> Float:
    """One map [h, w] to ``size``: bilinear, half-pixel centres, no antialias.

    Equals torch's ``interpolate(mode="bilinear", align_corners=False)`` to rounding.
    """
    if logits.shape == size:
        return logits
    resized = cv2.resize(logits, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def unletterbox(logits: Float, geometry: Geometry) -> Float:
    """Mask logits [h, w] of one query at image size.

    Interpolated twice like the reference: to the input, then without padding to the image.
    """
    at_input = resize_logits(logits, geometry.input_size)
    height, width = geometry.scaled_size
    return resize_logits(np.ascontiguousarray(at_input[:height, :width]), geometry.image_size)


def sigmoid(x: Float) -> Float:
    with np.errstate(over="ignore"):  # exp overflows to inf, whose reciprocal is the right 0
        return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float32)


def softmax(x: Float) -> Float:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
