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


def is_turned(frame: Any) -> bool:
    """Whether a frame is stored with its sides exchanged."""
    return _turns(frame) % 2 == 1


def _turns(frame: Any) -> int:
    """Number of quarter turns to the left; 0 if the stored rotation has no meaning."""
    return round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0


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
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
