"""From what users have (path, array, PIL image) to RGB pixels, and nothing guessed silently."""

from __future__ import annotations

import glob
import io
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from eomt_deploy.errors import ImageError, UsageError

RgbImage = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], RGB, 0-255."""

ColorOrder = Literal["rgb", "bgr"]
ImageSource = str | Path | npt.NDArray[Any] | Image.Image

DECODE_ERRORS = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on damaged data."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# Pillow would read these by keeping the high byte or refusing; both hide the user's range.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
TIFF_BITS_PER_SAMPLE = 258
DEEP_FIX = "Scale it to 8 bits yourself, with the range that your data use, and pass uint8."


def load_image(source: ImageSource, *, color_order: ColorOrder = "rgb") -> RgbImage:
    """Pixels of one image.

    EXIF orientation is applied; greyscale is repeated to three channels; palette and CMYK
    are converted; transparency is dropped, as the data sets' own loaders do.

    Args:
        source: path, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8.
        color_order: channel order of an array; OpenCV reads ``"bgr"``.

    Returns:
        uint8 [H, W, 3], RGB. A view of ``source`` where nothing had to change.

    Raises:
        ImageError: not an image, damaged, empty, or deeper than 8 bits.
    """
    if color_order not in ("rgb", "bgr"):
        raise UsageError(f"color_order {color_order!r} is unknown.", fix="Use 'rgb' or 'bgr'.")
    if isinstance(source, np.ndarray):
        return _from_array(source, color_order)
    if color_order != "rgb":
        raise UsageError(
            "color_order is for arrays; files and PIL images know their own.",
            fix="Leave color_order out.",
        )
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    raise ImageError(
        f"A {type(source).__name__} is not an image source.",
        fix="Pass a path, a uint8 array [H, W, 3] or a PIL image.",
    )


def _from_path(path: Path) -> RgbImage:
    if str(path).startswith(("http:/", "https:/")):
        raise ImageError(
            f"{path} is an address; images are read from files.", fix="Download it first."
        )
    try:
        return decode_image(path.read_bytes(), str(path))
    except IsADirectoryError as error:
        raise ImageError(
            f"{path} is a folder, not an image.", fix="Pass the images inside."
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"There is no image at {path}.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from error


def decode_image(data: bytes, origin: str) -> RgbImage:
    """Pixels of an encoded image; as :func:`load_image`, ``origin`` names it in errors."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if _bits_per_channel(image, data) > 8:
                raise ImageError(f"{origin} has more than 8 bits per channel.", fix=DEEP_FIX)
            return _from_pil(image, origin)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{origin} is not an image that can be read.",
            fix="Pass a JPEG, PNG, WebP, BMP or TIFF file.",
        ) from error
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise ImageError(f"{origin} cannot be decoded: {error}.") from error


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Depth as the file states it: Pillow itself quietly brings 16-bit colour down to 8."""
    if image.format == "PNG":
        return data[24]  # signature 8, length 4, "IHDR" 4, width 4, height 4
    if image.format == "TIFF":
        bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE, (8,))
        return max(bits)
    if image.format == "PPM":
        header = re.sub(rb"#[^\n]*", b"", data[:200]).split()
        return 16 if header[0] in (b"P5", b"P6") and int(header[3]) > 255 else 8
    return 8


def _from_pil(image: Image.Image, origin: str) -> RgbImage:
    if image.mode in DEEP_MODES:
        raise ImageError(f"{origin} has more than 8 bits per channel ({image.mode}).", fix=DEEP_FIX)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode != "RGB":
            # A palette with transparency must go through RGBA or Pillow warns and guesses.
            through_rgba = image.mode == "P" and "transparency" in image.info
            image = (image.convert("RGBA") if through_rgba else image).convert("RGB")
        return np.asarray(image)
    except DECODE_ERRORS as error:
        raise ImageError(f"{origin} cannot be decoded: {error}.") from error


def _from_array(array: npt.NDArray[Any], color_order: ColorOrder) -> RgbImage:
    if array.dtype != np.uint8:
        raise ImageError(
            f"The array is {array.dtype}, an image must be uint8.",
            fix=DEEP_FIX if array.dtype.kind in "ui" else "Scale it to 0-255 and cast to uint8.",
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"An array of shape {list(array.shape)} is not one image.",
            fix="Pass [H, W, 3] (also [H, W], [H, W, 1] or [H, W, 4]); channels come last.",
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    array = array[:, :, :3]
    return array[:, :, ::-1] if color_order == "bgr" else array


def built_in_photos() -> list[Path]:
    """The photos that come with the package."""
    return sorted((Path(__file__).parent / "assets").glob("*.jpg"))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Image files that paths, folders (searched deeply) and globs stand for, sorted, once each.

    Raises:
        ImageError: a path that is not there, a glob or folder without any image.
    """
    found: dict[str, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.is_file())
            matches = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            if not matches:
                raise ImageError(
                    f"The folder {path} holds no image.",
                    fix=f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
                )
        elif glob.has_magic(str(source)):
            names = sorted(glob.glob(str(source), recursive=True))
            matches = [Path(name) for name in names if Path(name).is_file()]
            if not matches:
                raise ImageError(f"No file matches {source}.")
        else:
            raise ImageError(f"There is no image or folder at {path}.")
        for match in matches:  # one photo named twice, as a/x.jpg and ./a/x.jpg, is one photo
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())
