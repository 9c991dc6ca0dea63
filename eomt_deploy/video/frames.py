"""What all videos have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from eomt_deploy.closing import Closing
from eomt_deploy.errors import MissingDependencyError
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
        live: whether frames arrive in real time; there is no known end then.
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


def to_pixels(frame: Any) -> RgbImage:
    """An RGB image from a frame of PyAV, turned upright."""
    unspecified = frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT
    space = BT709 if unspecified else None
    pixels = frame.reformat(format="rgb24", src_colorspace=space).to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
