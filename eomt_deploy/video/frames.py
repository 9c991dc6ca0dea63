"""What all videos have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from eomt_deploy.closing import Closing
from eomt_deploy.errors import ImageError, MissingDependencyError
from eomt_deploy.sources import RgbImage

HD_HEIGHT = 720
"""Videos of this height or more have BT.709 colours if they do not say otherwise, as in players."""
UNSPECIFIED, BT709 = 2, 1
"""Colour spaces of FFmpeg (ITU-T H.273)."""


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        pixels: uint8 RGB [H, W, 3], upright.
        time: seconds since the start of the video, or since a camera or stream was opened.
        number: number of the frame from 0, counted from the start time.
    """

    pixels: RgbImage
    time: float
    number: int


class Video(Closing):
    """Frames from a file, a stream or a camera. It can be iterated once.

    Attributes:
        name: path or address, without secrets.
        live: whether frames arrive in real time, without a known end.
        rate: mean number of frames per second after ``every``, if it is known.
        count: approximate number of frames that will be returned, if it is known.
        remarks: what went wrong without ending the video, e.g. dropped frames; complete at the end.
    """

    name: str
    live: bool
    rate: Fraction | None
    count: int | None

    @property
    @abstractmethod
    def remarks(self) -> tuple[str, ...]:
        """See the class."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Read the frames.

        Raises:
            ImageError: the video is damaged or has ended unexpectedly.
        """


def import_av() -> ModuleType:
    """PyAV, which contains FFmpeg.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            "Videos need the package av (PyAV), which is not installed.",
            fix="pip install 'eomt-deploy[video]'",
        ) from error
    av.logging.set_level(None)  # FFmpeg's own messages; errors are raised
    return av


class Orientation(NamedTuple):
    """How a stored picture becomes upright: exchange the axes, then reverse rows and columns."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False


def orientation(frame: Any) -> Orientation:
    """The orientation of a frame, from the display matrix that phones store.

    The matrix maps a stored point to a shown one: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12,
    ``tkhd``). It can also mirror the picture. Other angles are rounded to quarter turns.
    """
    matrix = _display_matrix(frame)
    if matrix is None:
        return Orientation()
    a, b, c, d = matrix
    if abs(a) >= abs(b):
        return Orientation(False, rows_reversed=d < 0, columns_reversed=a < 0)
    return Orientation(True, rows_reversed=b < 0, columns_reversed=c < 0)


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c and d of the display matrix (16.16 fixed point); None if there is none."""
    data = frame.side_data.get(import_av().sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def is_turned(frame: Any) -> bool:
    """Whether a frame is stored with its sides exchanged."""
    return orientation(frame).transposed


def upright(pixels: RgbImage, frame: Any) -> RgbImage:
    """The pixels of a frame [H, W, 3], in its orientation."""
    transposed, rows, columns = orientation(frame)
    if transposed:
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(pixels)


def to_pixels(frame: Any, name: str) -> RgbImage:
    """An RGB image from a frame of PyAV, turned upright.

    Args:
        frame: the frame.
        name: name of the video in errors.

    Raises:
        ImageError: FFmpeg cannot convert its colours.
    """
    unspecified = frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT
    space = BT709 if unspecified else None
    try:
        pixels: RgbImage = frame.reformat(format="rgb24", src_colorspace=space).to_ndarray()
    except (OSError, ValueError) as error:  # the bases of FFmpeg's errors
        raise ImageError(
            f"The colours of {name} cannot be converted: {frame.format.name}, colour space "
            f"{int(frame.colorspace)}.",
            fix="Convert the video, e.g. with ffmpeg, to H.264 with 4:2:0 colours.",
        ) from error
    return upright(pixels, frame)
