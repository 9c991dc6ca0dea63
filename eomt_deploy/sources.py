"""Read images (path, array, PIL image) as RGB pixels; ambiguous inputs raise an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.decoding import (
    DEEP_FIX,
    DEEP_MODES,
    ENCODED_BYTES_PER_PIXEL,
    IMAGE_SUFFIXES,
    check_depth,
    check_encoded_size,
    check_max_pixels,
    check_size,
    limited,
    opened,
    orientation,
    to_rgb,
    undecodable,
    upright,
)
from eomt_deploy.errors import EomtDeployError, ImageError, UsageError, first_line
from eomt_deploy.image_search import find_images
from eomt_deploy.units import counted
from eomt_deploy.web import download

__all__ = [
    "IMAGE_SUFFIXES",
    "ColorOrder",
    "ImageSource",
    "RgbImage",
    "built_in_images",
    "decode_image",
    "decode_labelled",
    "find_images",
    "load_image",
    "readable_images",
]

RgbImage = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], RGB, 0-255."""

ColorOrder = Literal["rgb", "bgr"]


class DlpackArray(Protocol):
    """An array of torch, CuPy, JAX, … on a CPU or GPU."""

    def __dlpack__(self) -> Any: ...


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


ImageSource = (
    str | Path | bytes | bytearray | Readable | npt.NDArray[Any] | Image.Image | DlpackArray
)

MIN_READABLE = 4
"""Minimum number of readable images if some of a set cannot be read. With fewer, no image could be
held out for validation (every fourth is), and one unusual image would decide the result."""
NAMED = 5
"""Maximum number of unreadable images that a warning names; the others are only counted."""


def load_image(
    source: ImageSource, *, color_order: ColorOrder = "rgb", max_pixels: int | None = None
) -> RgbImage:
    """Read the pixels of one image.

    The EXIF orientation is applied. Greyscale is repeated to three channels, palette and CMYK
    images are converted, and transparency is dropped, as in the loaders of the data sets. Only the
    first image of an animation or of a file with several pages is read.

    Args:
        source: path or http(s) address; content of an image file (bytes), or a file that is open
            for reading bytes;
            PIL image; uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; or a tensor of torch,
            CuPy, …, on a CPU or GPU, also with the channels first ([3, H, W]).
        color_order: channel order of an array: ``"rgb"``, or ``"bgr"`` as in OpenCV.
        max_pixels: maximum number of pixels of a file, or of a PIL image that is not loaded yet,
            checked before decoding; None takes 100,000,000 (300 MB as RGB). Arrays have no limit.

    Returns:
        uint8 [H, W, 3], RGB. A view of ``source`` if no conversion is needed.

    Raises:
        ImageError: not an image, damaged, empty, too large, or more than 8 bits per channel.
        UsageError: color_order is unknown, or max_pixels is below 1.
    """
    check_color_order(color_order)
    limit = check_max_pixels(max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, color_order)
    if hasattr(source, "__dlpack__"):
        return _from_array(channels_last(to_numpy(source)), color_order)
    if color_order != "rgb":
        raise UsageError(
            "color_order is only for arrays; files and PIL images define their channel order.",
            fix="Leave out color_order, or pass an array.",
        )
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image", limit)
    if isinstance(source, str) and is_address(source):
        data = download(source, limit * ENCODED_BYTES_PER_PIXEL + (1 << 20))
        return _from_bytes(data, without_secrets(source), limit)
    if isinstance(source, str | Path):
        return _from_path(Path(source), limit)
    if isinstance(source, bytes | bytearray):
        return _from_bytes(bytes(source), "The encoded image", limit)
    if hasattr(source, "read"):
        return _from_file(source, limit)
    raise ImageError(
        f"An object of type {type(source).__name__} is not an image.",
        fix="Pass a path, bytes or an open file, a uint8 array [H, W, 3], a tensor or a PIL image.",
    )


def check_color_order(color_order: ColorOrder) -> ColorOrder:
    """Refuse a channel order that does not exist.

    Raises:
        UsageError: it is neither ``"rgb"`` nor ``"bgr"``.
    """
    if color_order not in ("rgb", "bgr"):
        raise UsageError(
            f"color_order must be 'rgb' or 'bgr', got {color_order!r}.",
            fix="Pass 'bgr' for arrays of OpenCV, otherwise leave it out.",
        )
    return color_order


def _from_bytes(data: bytes, origin: str, max_pixels: int) -> RgbImage:
    check_encoded_size(len(data), origin, max_pixels)
    return decode_image(data, origin, max_pixels=max_pixels)


def _from_file(file: Readable, max_pixels: int) -> RgbImage:
    name = getattr(file, "name", None)
    origin = name if isinstance(name, str) else "The open file"
    origin = "Standard input" if origin == "<stdin>" else origin
    try:
        data = file.read(max_pixels * ENCODED_BYTES_PER_PIXEL + (1 << 20))
    except (OSError, ValueError) as error:  # ValueError: closed, or opened for writing
        raise ImageError(
            f"{origin} cannot be read: {error}.", fix='Pass a file from open(path, "rb").'
        ) from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"{origin} gives {type(data).__name__}, not bytes.",
            fix='Open it in binary mode: open(path, "rb").',
        )
    return _from_bytes(data, origin, max_pixels)


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """An array of another library in host memory, copied only from a GPU.

    Raises:
        ImageError: numpy does not support its type or device.
    """
    try:
        for step in ("detach", "cpu", "get"):  # torch, torch, CuPy
            if hasattr(array, step):
                array = getattr(array, step)()
        return np.from_dlpack(array)
    except Exception as error:  # each library has its own exceptions
        raise ImageError(
            f"This {type(array).__name__} cannot be converted to a numpy array.",
            why=first_line(error),
            fix="Convert it to a uint8 array [H, W, 3] in host memory.",
        ) from error


def channels_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[H, W, C] from a tensor [C, H, W]; unchanged if the channels are last already.

    Raises:
        ImageError: the first and the last axis could both be the channels.
    """
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        return array
    if array.shape[2] in (1, 3, 4):
        raise ImageError(
            f"A tensor of shape {list(array.shape)} may have its channels first or last.",
            fix="Pass a numpy array [H, W, 3], e.g. tensor.permute(1, 2, 0).numpy().",
        )
    return np.moveaxis(array, 0, 2)


def _from_path(path: Path, max_pixels: int) -> RgbImage:
    # A name that is not valid text is shown escaped, so that the message can be printed.
    shown = str(path).encode(errors="backslashreplace").decode()
    if shown.startswith(("http:/", "https:/")):  # a Path has no double slash
        raise ImageError(
            f"{shown} is a web address, but a file is needed here.",
            fix="Download the image first. In Python, pass an address as text, not as a Path.",
        )
    try:
        check_encoded_size(path.stat().st_size, shown, max_pixels)
        with path.open("rb") as file:  # with a limit, since the size of a device is not known
            data = file.read(max_pixels * ENCODED_BYTES_PER_PIXEL + (1 << 20))
    except IsADirectoryError as error:
        raise ImageError(
            f"{shown} is a folder, not an image.", fix="Pass the images inside."
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"There is no image at {shown}.", fix="Check the path.") from error
    except OSError as error:
        raise ImageError(
            f"{shown} cannot be read: {error.strerror or error}.",
            fix="Check that the file can be opened.",
        ) from error
    except ValueError as error:  # a null byte or a lone surrogate
        raise ImageError(
            f"{shown!r} cannot be a file name: {error}.", fix="Check the path."
        ) from error
    return decode_image(data, shown, max_pixels=max_pixels)


def decode_image(data: bytes, origin: str, *, max_pixels: int | None = None) -> RgbImage:
    """Decode an encoded image as in :func:`load_image`; ``origin`` is its name in errors."""
    with opened(data, origin, check_max_pixels(max_pixels)) as image:
        check_depth(image, data, origin)
        pixels = to_rgb(image, data=data)
        return upright(pixels, orientation(image))  # of a PNG, known after decoding only


def decode_labelled(
    data: bytes, origin: str, size: tuple[int, int], *, max_pixels: int | None = None
) -> tuple[RgbImage, int, bool]:
    """Decode an encoded image in the orientation of its labels.

    The official data set reader ignores the EXIF orientation, so labels belong to the stored
    pixels. These are used whenever they have the size of the labels, even if the upright image has
    the same size (a rotation by 180 degrees, or a square). Labels that only match the size of the
    upright image were drawn on it.

    Args:
        data: the file's content.
        origin: name of the image in errors.
        size: (H, W) of the labels.
        max_pixels: as in :func:`load_image`.

    Returns:
        uint8 [H, W, 3], RGB; the EXIF orientation (1 if there is none); whether it was applied.
    """
    with opened(data, origin, check_max_pixels(max_pixels)) as image:
        check_depth(image, data, origin)
        pixels = to_rgb(image, data=data)
        turn = orientation(image)
        stored = pixels.shape[:2]
        # Orientations 5 to 8 exchange height and width.
        applied = turn >= 5 and stored != size and stored[::-1] == size
        return upright(pixels, turn if applied else 1), turn, applied


def _from_pil(image: Image.Image, origin: str, max_pixels: int) -> RgbImage:
    try:
        with limited(origin, max_pixels):
            if isinstance(image, ImageFile.ImageFile) and getattr(image, "_im", None) is None:
                check_size(image, origin, max_pixels)
            if 0 in image.size:
                raise ImageError(
                    f"{origin} is empty: {image.width}x{image.height} pixels.",
                    fix="Pass an image with at least one pixel.",
                )
            if image.mode in DEEP_MODES:
                raise ImageError(
                    f"{origin} has more than 8 bits per channel ({image.mode}).", fix=DEEP_FIX
                )
            return upright(to_rgb(image), orientation(image))
    except EomtDeployError:
        raise
    except Exception as error:
        raise undecodable(origin, error) from error


def _from_array(array: npt.NDArray[Any], color_order: ColorOrder) -> RgbImage:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ImageError(
            f"The array has {int(np.ma.getmaskarray(array).sum())} masked values.",
            why="A network has no masked pixels; it would use the values under the mask.",
            fix="Fill them, e.g. array.filled(0).",
        )
    array = np.asarray(array)  # np.matrix and other subclasses have their own indexing
    if array.dtype != np.uint8:
        raise ImageError(
            f"The array must be uint8, got {array.dtype}.",
            fix=DEEP_FIX if array.dtype.kind in "ui" else "Scale it to 0-255 and cast to uint8.",
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"An array of shape {list(array.shape)} is not one image.",
            fix="Pass several images as a list, e.g. list(array)."
            if array.ndim == 4
            else "Pass [H, W, 3], [H, W], [H, W, 1] or [H, W, 4], with the channels last.",
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    array = array[:, :, :3]
    return array[:, :, ::-1] if color_order == "bgr" else array


def built_in_images() -> list[Path]:
    """The images that come with the package."""
    return sorted((Path(__file__).parent / "assets").glob("*.jpg"))


def readable_images(
    paths: Sequence[Path], purpose: str, read: Callable[[Path], object] = load_image
) -> tuple[list[Path], list[str]]:
    """Find the readable images of a set, so that one damaged file does not end a long job.

    Args:
        paths: images, at least one. All are read.
        purpose: their purpose in messages, e.g. ``calibration``.
        read: function that reads an image; it raises an :class:`ImageError` if it is not usable.

    Returns:
        the readable images in their order, and a list with one warning that names the others, or
        without any.

    Raises:
        ImageError: some images are not readable, and fewer than :data:`MIN_READABLE` are left.
    """
    readable: list[Path] = []
    reasons: list[str] = []
    for path in paths:
        try:
            read(path)
        except ImageError as error:
            named_already = str(path) in error.what
            reasons.append(error.what if named_already else f"{path}: {error.what}")
        else:
            readable.append(path)
    if not reasons:
        return readable, []
    named = " ".join(reasons[:NAMED])
    if len(reasons) > NAMED:
        named += f" … and {len(reasons) - NAMED} more."
    if len(readable) < min(MIN_READABLE, len(paths)):
        raise ImageError(
            f"Only {len(readable)} of {counted(len(paths), 'image')} for {purpose} can be read, "
            f"at least {min(MIN_READABLE, len(paths))} are needed.",
            why=named,
            fix="Replace or remove the files that cannot be read.",
        )
    return readable, [
        f"{len(reasons)} of {counted(len(paths), 'image')} for {purpose} cannot be read and are "
        f"left out: {named}"
    ]
