"""Encoded images: which formats are read, how large they may be, and which side is up."""

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

# Pillow logs some faults before it raises them; without a handler Python prints such lines.
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
"""Pillow's name of each format that is read, and the suffixes of its files.

The content decides, not the suffix. Pillow could open 30 more, some by starting other programs
(EPS starts Ghostscript). Of an animation or a file with several pages, the first image is read.
"""
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MAX_PIXELS = 100_000_000
"""Default limit of one image: 300 MB as RGB. A few kB can decode to gigabytes."""
ENCODED_BYTES_PER_PIXEL = 8
"""A file with more bytes than this for each allowed pixel (RGBA of 16 bits) is not read at all."""

# Pillow would read these by keeping the high byte or refusing; both hide the user's range.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
DEEP_FIX = "Scale it to 8 bits yourself, with the range that your data use, and pass uint8."
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
"""EXIF orientation (TIFF 6.0, tag 274) -> what shows the stored pixels upright."""


def check_max_pixels(max_pixels: int | None) -> int:
    """The limit that is used: the default for None.

    Raises:
        UsageError: it is not a whole number of at least 1.
    """
    if max_pixels is None:
        return MAX_PIXELS
    whole = isinstance(max_pixels, int | np.integer) and not isinstance(max_pixels, bool)
    if not whole or max_pixels < 1:
        raise UsageError(
            f"max_pixels must be a whole number of at least 1, got {max_pixels!r}.",
            fix=f"Leave it out for the default of {MAX_PIXELS:,}, or pass 200000000.",
        )
    return int(max_pixels)


@contextmanager
def opened(data: bytes, origin: str, max_pixels: int) -> Iterator[Image.Image]:
    """An encoded image, opened by Pillow and not decoded yet.

    Args:
        data: the file's content.
        origin: names the image in errors.
        max_pixels: limit that is checked on the header, before anything is decoded.

    Raises:
        ImageError: not an image, too large, or anything that a decoder raises in the block.
    """
    try:
        with limited(origin, max_pixels), _open(io.BytesIO(data)) as image:
            check_size(image, origin, max_pixels)
            yield image
    except EomtDeployError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{origin} is not an image that can be read.",
            fix=f"Pass a file of one of these formats: {', '.join(FORMATS)}.",
        ) from error
    except Exception as error:  # decoders raise everything: KeyError, AssertionError, MemoryError
        raise undecodable(origin, error) from error


def undecodable(origin: str, error: Exception) -> ImageError:
    """The one error that everything becomes that a decoder raises."""
    reason = str(error) or type(error).__name__
    return ImageError(f"{origin} cannot be decoded: {reason.rstrip('.')}.")


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose metadata Pillow leaves alone.

    It would look for the resolution in EXIF tags, and for further images in an index (MPO). Both
    may be broken in an image that is fine, and neither is needed.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _open(file: io.BytesIO) -> Image.Image:
    signature = file.read(3)
    file.seek(0)
    if signature == b"\xff\xd8\xff":
        return _Jpeg(file)
    # AVIF needs a Pillow that was built with it.
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


class _Policy(threading.local):
    """The limit of the image that this thread decodes: its name and pixels."""

    limit: tuple[str, int] | None = None


_policy = _Policy()
_pillows_own_check = Image._decompression_bomb_check


def _check_allocation(size: tuple[int, int], **options: Any) -> None:
    """Pillow calls this before it allocates pixels.

    Its own limit is one for the process, and a warning below that. Where this package decodes, its
    limit counts instead; any other use of Pillow in the process keeps Pillow's.
    """
    if _policy.limit is None:
        _pillows_own_check(size, **options)
    else:
        _check_pixels(size, *_policy.limit)


setattr(Image, "_decompression_bomb_check", _check_allocation)  # noqa: B010


@contextmanager
def limited(origin: str, max_pixels: int) -> Iterator[None]:
    """In this block and thread, Pillow allocates no image of more than ``max_pixels``."""
    before = _policy.limit
    _policy.limit = (origin, max_pixels)
    try:
        yield
    finally:
        _policy.limit = before


def check_size(image: Image.Image, origin: str, max_pixels: int) -> None:
    """Refuse an image, by its header, that decodes to too many pixels.

    Raises:
        ImageError: it has more than ``max_pixels``.
    """
    _check_pixels(image.size, origin, max_pixels)
    tags = getattr(image, "tag_v2", None)
    if tags and TIFF_TILE_WIDTH in tags and TIFF_TILE_LENGTH in tags:
        # A tile may be larger than its image, and is decoded as a whole.
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
        why="A small file can decode to gigabytes, so the size is checked before it is decoded.",
        fix=f"Shrink the image, or raise the limit: --max-pixels {enough}; in Python "
        f"Segmenter(..., max_pixels={enough}) or load_image(..., max_pixels={enough}).",
    )


def check_encoded_size(size: int, origin: str, max_pixels: int) -> None:
    """Refuse a file that is too large to be an image of the allowed size.

    Raises:
        ImageError: it has more than 8 bytes for each pixel of the limit.
    """
    largest = max_pixels * ENCODED_BYTES_PER_PIXEL
    if size > max(largest, 1 << 20):
        raise ImageError(
            f"{origin} is larger than {largest / 1e6:,.0f} MB; an image of at most {max_pixels:,} "
            "pixels does not need that.",
            fix="Check that it is an image, or raise the limit: --max-pixels, in Python "
            "max_pixels=.",
        )


def check_depth(image: Image.Image, data: bytes, origin: str) -> None:
    """Refuse an image of more than 8 bits per channel.

    Raises:
        ImageError: it is.
    """
    if image.mode in DEEP_MODES or _bits_per_channel(image, data) > 8:
        raise ImageError(f"{origin} has more than 8 bits per channel.", fix=DEEP_FIX)


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Depth as the file states it: Pillow itself quietly brings 16-bit colour down to 8."""
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


def to_rgb(image: Image.Image, *, turn: int = 1) -> npt.NDArray[np.uint8]:
    """Decode: uint8 [H, W, 3], RGB, turned from the EXIF orientation ``turn`` to upright."""
    image.load()
    if image.mode != "RGB":
        # A palette with transparency must go through RGBA or Pillow warns and guesses.
        through_rgba = image.mode == "P" and "transparency" in image.info
        image = (image.convert("RGBA") if through_rgba else image).convert("RGB")
    if turn in TURNS:
        image = image.transpose(TURNS[turn])
    return np.asarray(image)


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a decoded image, 1 to 8; 1 where it has none.

    Only this tag is read: Pillow's ``exif_transpose`` also writes the others again, and fails on
    those that it does not understand. Pillow turns a TIFF by itself, and leaves no EXIF then.
    """
    exif = image.info.get("exif")
    if exif is None:  # as ImageMagick stores it in a PNG
        lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
        with suppress(ValueError):
            exif = bytes.fromhex("".join(lines))
    return _orientation_tag(exif) if isinstance(exif, bytes) else 1


def _orientation_tag(exif: bytes) -> int:
    """The tag in the first directory of an EXIF block, which is a TIFF file without an image."""
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
    except struct.error:  # cut off before the tag
        pass
    return 1
