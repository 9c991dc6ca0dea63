"""Encoded images: supported formats, size limits, bit depth and EXIF orientation."""

from __future__ import annotations

import io
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from eomt_deploy.errors import EomtDeployError, ImageError, UsageError

try:
    import simplejpeg
except ImportError:  # Pillow decodes the same pixels, in almost twice the time
    simplejpeg = None

# Pillow logs some errors before it raises them; without a handler Python prints these lines.
logging.getLogger("PIL").addHandler(logging.NullHandler())

with suppress(ImportError):  # Pillow 11.3 and later
    from PIL import AvifImagePlugin  # noqa: F401

FORMATS = {
    JpegImagePlugin.JpegImageFile.format: (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    PngImagePlugin.PngImageFile.format: (".png", ".apng"),
    WebPImagePlugin.WebPImageFile.format: (".webp",),
    BmpImagePlugin.BmpImageFile.format: (".bmp",),
    TiffImagePlugin.TiffImageFile.format: (".tif", ".tiff"),
    PpmImagePlugin.PpmImageFile.format: (".ppm", ".pgm", ".pbm", ".pnm"),
    GifImagePlugin.GifImageFile.format: (".gif",),
    "AVIF": (".avif",),
}
"""Supported formats: Pillow's name -> suffixes.

The format is detected from the content, not from the suffix. Pillow can open 30 more, some by
starting other programs (EPS starts Ghostscript). Only the first image of an animation or of a file
with several pages is read.
"""
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MAX_PIXELS = 100_000_000
"""Default limit of one image: 300 MB as RGB. A file of a few kB can decode to gigabytes."""
ENCODED_BYTES_PER_PIXEL = 8
"""A file with more bytes per allowed pixel (RGBA of 16 bits) is not read at all."""

# Pillow would keep the high byte of these modes or refuse them, whatever range the data use.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
DEEP_FIX = "Scale the image to 8 bits with the value range of your data, and pass uint8."
TIFF_BITS_PER_SAMPLE, TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 258, 322, 323
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (TIFF 6.0, tag 274) -> operation that turns the stored pixels upright."""


def check_max_pixels(max_pixels: int | None) -> int:
    """Check the limit and return it; the default for None.

    Raises:
        UsageError: the limit is not an integer of at least 1.
    """
    if max_pixels is None:
        return MAX_PIXELS
    is_integer = isinstance(max_pixels, int | np.integer) and not isinstance(max_pixels, bool)
    if not is_integer or max_pixels < 1:
        raise UsageError(
            f"max_pixels must be an integer of at least 1, got {max_pixels!r}.",
            fix=f"Leave it out for the default of {MAX_PIXELS:,}, or pass e.g. 200000000.",
        )
    return int(max_pixels)


@contextmanager
def opened(data: bytes, origin: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an encoded image with Pillow, without decoding it.

    Args:
        data: the file's content.
        origin: name of the image in errors.
        max_pixels: limit that is checked in the header, before anything is decoded.

    Raises:
        ImageError: not an image, too large, or the decoder fails inside the ``with`` block.
    """
    try:
        with limited(origin, max_pixels), _open(io.BytesIO(data)) as image:
            check_size(image, origin, max_pixels)
            yield image
    except EomtDeployError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{origin} is not an image, or its format is not supported.",
            fix=f"Pass a file of one of these formats: {', '.join(FORMATS)}.",
        ) from error
    except Exception as error:  # decoders also raise KeyError, AssertionError, MemoryError, …
        raise undecodable(origin, error) from error


def undecodable(origin: str, error: Exception) -> ImageError:
    """The error for any exception of a decoder."""
    reason = str(error) or type(error).__name__
    return ImageError(
        f"{origin} cannot be decoded: {reason.rstrip('.')}.",
        fix="Save the image again in an image editor, or download it again.",
    )


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose metadata Pillow does not parse.

    Pillow would read the resolution from EXIF tags, and an index of further images (MPO). Both can
    be damaged in an otherwise valid image, and neither is needed.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _open(file: io.BytesIO) -> Image.Image:
    signature = file.read(3)
    file.seek(0)
    if signature == b"\xff\xd8\xff":
        return _Jpeg(file)
    # AVIF is missing in some builds of Pillow.
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


class _Policy(threading.local):
    """Name and maximum number of pixels of the image that this thread decodes."""

    limit: tuple[str, int] | None = None


_policy = _Policy()
_pillows_own_check = Image._decompression_bomb_check


def _check_allocation(size: tuple[int, int], **options: Any) -> None:
    """Check the limit of this thread; Pillow calls this function before it allocates pixels.

    Pillow's own check has one limit for the process, and warns before it is reached. Our limit
    replaces it only while this package decodes; other users of Pillow keep Pillow's check.
    """
    if _policy.limit is None:
        _pillows_own_check(size, **options)
    else:
        _check_pixels(size, *_policy.limit)


setattr(Image, "_decompression_bomb_check", _check_allocation)  # noqa: B010


@contextmanager
def limited(origin: str, max_pixels: int) -> Iterator[None]:
    """Limit the images that Pillow allocates in this ``with`` block and thread."""
    before = _policy.limit
    _policy.limit = (origin, max_pixels)
    try:
        yield
    finally:
        _policy.limit = before


def check_size(image: Image.Image, origin: str, max_pixels: int) -> None:
    """Refuse an image whose header declares more than ``max_pixels``.

    Raises:
        ImageError: the image or one of its tiles is too large.
    """
    _check_pixels(image.size, origin, max_pixels)
    tags = getattr(image, "tag_v2", None)
    if tags and TIFF_TILE_WIDTH in tags and TIFF_TILE_LENGTH in tags:
        # A tile can be larger than its image, and is decoded completely.
        _check_pixels((tags[TIFF_TILE_WIDTH], tags[TIFF_TILE_LENGTH]), origin, max_pixels)


def _check_pixels(size: tuple[int, int], origin: str, max_pixels: int) -> None:
    width, height = size
    pixels = width * height
    if pixels <= max_pixels:
        return
    step = 10 ** (len(str(pixels)) - 1)
    enough = -(-pixels // step) * step
    raise ImageError(
        f"{origin} has {width}x{height} (width x height) = {pixels:,} pixels, more than the limit "
        f"of {max_pixels:,}.",
        why="A small file can decode to gigabytes, so the size is checked before decoding.",
        fix=f"Shrink the image, or raise the limit: --max-pixels {enough}; in Python "
        f"Segmenter(..., max_pixels={enough}) or load_image(..., max_pixels={enough}).",
    )


def check_encoded_size(size: int, origin: str, max_pixels: int) -> None:
    """Refuse a file that is too large to be an image of the allowed size.

    Raises:
        ImageError: the file has more than 8 bytes for each allowed pixel.
    """
    largest = max_pixels * ENCODED_BYTES_PER_PIXEL
    if size > max(largest, 1 << 20):
        raise ImageError(
            f"{origin} is larger than {largest / 1e6:,.0f} MB, the maximum for an image of "
            f"{max_pixels:,} pixels.",
            fix="Check that it is an image, or raise the limit: --max-pixels, in Python "
            "max_pixels=.",
        )


def check_depth(image: Image.Image, data: bytes, origin: str) -> None:
    """Refuse an image with more than 8 bits per channel.

    Raises:
        ImageError: it has more.
    """
    if image.mode in DEEP_MODES or _bits_per_channel(image, data) > 8:
        raise ImageError(f"{origin} has more than 8 bits per channel.", fix=DEEP_FIX)


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Bit depth in the file: Pillow converts 16-bit colour to 8 bits without a warning."""
    if image.format == "PNG" and data[12:16] == b"IHDR":
        return data[24]  # signature 8, length 4, "IHDR" 4, width 4, height 4
    if image.format == "TIFF":
        tags = cast("TiffImagePlugin.TiffImageFile", image).tag_v2
        bits: tuple[int, ...] = tags.get(TIFF_BITS_PER_SAMPLE, (8,))
        return max(bits)
    if image.format == "PPM":
        args = cast("PpmImagePlugin.PpmImageFile", image).tile[0].args
        maximum = args[-1] if isinstance(args, tuple) else 255
        return 16 if isinstance(maximum, int) and maximum > 255 else 8
    return 8


def to_rgb(image: Image.Image, *, data: bytes = b"") -> npt.NDArray[np.uint8]:
    """Decode to uint8 [H, W, 3], RGB, as stored.

    Args:
        image: the opened image.
        data: content of the file that it was opened from, if it is not decoded yet.
    """
    pixels = _jpeg_pixels(image, data) if data else None
    if pixels is None:
        image.load()
        if image.mode != "RGB":
            # Without the detour through RGBA, Pillow warns about a palette with transparency.
            through_rgba = image.mode == "P" and "transparency" in image.info
            image = (image.convert("RGBA") if through_rgba else image).convert("RGB")
        pixels = np.asarray(image)
    return pixels


def upright(pixels: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """Turn uint8 [H, W, 3] with this EXIF orientation upright."""
    if turn not in TURNS:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(TURNS[turn]))


def _jpeg_pixels(image: Image.Image, data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels of a usual and undamaged JPEG from libjpeg-turbo, which Pillow uses, too, without
    Pillow's copies. None for any other image: Pillow decides what can be shown of a damaged one.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        height, width, colors, sampling = simplejpeg.decode_jpeg_header(data)
        usual = colors in ("YCbCr", "Gray") and sampling in ("444", "422", "420", "Gray")
        if not usual or (width, height) != image.size:
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    except Exception:  # a ValueError for any doubt, a KeyError for unknown subsampling
        return None


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a decoded image, 1 to 8; 1 if it has none.

    Only this tag is read: Pillow's ``exif_transpose`` also rewrites the other tags, and fails on
    tags that it does not know. Pillow turns a TIFF itself, and removes its EXIF data then.
    """
    exif = image.info.get("exif")
    if exif is None:  # ImageMagick stores it like this in a PNG
        lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
        with suppress(ValueError):
            exif = bytes.fromhex("".join(lines))
    return _orientation_tag(exif) if isinstance(exif, bytes) else 1


def _orientation_tag(exif: bytes) -> int:
    """Orientation in the first directory of an EXIF block, which has TIFF format; 1 if none."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        magic, start = struct.unpack_from(f"{order}HI", exif, 2)
        if magic != 42:
            return 1
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return int(value) if value in TURNS else 1
    except struct.error:  # truncated before the tag
        pass
    return 1
