"""Write a video: overlays with the sound of the original, or labels without loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.closing import Closing
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import GENERATOR, staging_folder, through_links
from eomt_deploy.video.files import VideoFile
from eomt_deploy.video.frames import BT709, import_av
from eomt_deploy.video.sound import Sound

Codec = tuple[str, dict[str, str]]
H264: Codec = ("libx264", {"crf": "20", "preset": "veryfast"})
VP9: Codec = ("libvpx-vp9", {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"})
FFV1: Codec = ("ffv1", {"level": "3", "slicecrc": "1"})
CODECS: dict[str, Codec] = {".mp4": H264, ".m4v": H264, ".mov": H264, ".mkv": H264, ".webm": VP9}
"""Codec of the overlays for each suffix."""
LABEL_SUFFIX = ".mkv"
TIME_BASE = Fraction(1, 90_000)
DEFAULT_RATE = Fraction(30)
LIMITED = 1
"""FFmpeg's range of YUV values 16-235."""

Kind = Literal["overlay", "labels"]


class VideoWriter(Closing):
    """Writes frames with their times. The file appears when the writer is closed.

    Args:
        path: file to write; its suffix selects the format.
        size: (H, W) of the frames.
        rate: mean number of frames per second, for players and the encoder.
        kind: ``overlay``: RGB, compressed as usual. ``labels``: any uint8 [H, W] or [H, W, 3] or
            uint16 [H, W], without loss (FFV1 in Matroska).
        sound: video file whose sound, as far as frames are written, and shape of pixels are
            copied. Sound that does not fit into the format is converted.

    Attributes:
        remarks: e.g. that the sound was converted; complete after :meth:`close`.

    Raises:
        UsageError: the format is not supported.
        OutputError: the file cannot be written.
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        rate: Fraction | None,
        *,
        kind: Kind = "overlay",
        sound: VideoFile | None = None,
    ) -> None:
        check_format(path, kind)
        self._av: Any = import_av()
        self.path = path
        self.remarks: tuple[str, ...] = ()
        self._size, self._labels = size, kind == "labels"
        self._rate = (rate or DEFAULT_RATE).limit_denominator(1 << 16)
        self._first: float | None = None
        self._last = -1
        self._scaled = False
        self._stream: Any = None
        self._sound: Sound | None = None
        self._aspect = sound.pixel_aspect if sound is not None else None
        if path.exists() and not path.is_file():
            raise OutputError(
                f"{path} is not a regular file, which a video needs.", fix="Choose another file."
            )
        self._target = through_links(path)
        with ExitStack() as stack:
            self._staged = stack.enter_context(staging_folder(self._target)) / path.name
            self._container = self._av.open(str(self._staged), "w")
            stack.callback(self._container.close)
            self._container.metadata["comment"] = GENERATOR
            if sound is not None:
                self._sound = Sound(sound)
                stack.callback(self._sound.close)
            self._resources = stack.pop_all()

    def write(self, pixels: npt.NDArray[Any], time: float) -> None:
        """Append a frame.

        Args:
            pixels: uint8 RGB [H, W, 3], or labels.
            time: its time in seconds, later than that of the frame before. The first frame starts
                the video.
        """
        if self._first is None:
            self._start(pixels, time)
        assert self._first is not None
        if pixels.shape[:2] != self._size:
            pixels = self._resized(pixels, time)
        stamp = max(self._last + 1, round((time - self._first) / TIME_BASE))
        self._last = stamp
        with self._reporting():
            if self._sound:
                self._mux_sound(time)
            frame = self._frame(pixels)
            frame.pts, frame.time_base = stamp, TIME_BASE
            self._container.mux(self._stream.encode(frame))

    def _resized(self, pixels: npt.NDArray[Any], time: float) -> npt.NDArray[Any]:
        """A frame in the size of the first one: the size of a stream can change."""
        if not self._scaled:
            self._scaled = True
            self.remarks += (
                f"frames of another size, from {time:.2f} s on, are scaled to the first size",
            )
        height, width = self._size
        how = cv2.INTER_NEAREST if self._labels else cv2.INTER_AREA
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=how))

    def _start(self, pixels: npt.NDArray[Any], time: float) -> None:
        self._first = time
        name, options = FFV1 if self._labels else CODECS[self.path.suffix.lower()]
        with self._reporting():
            stream = self._container.add_stream(name, rate=self._rate, options=options)
            stream.height, stream.width = self._size
            stream.pix_fmt = _label_format(pixels) if self._labels else "yuv420p"
            if not self._labels:  # half of the resolution for colours needs even sizes
                stream.height, stream.width = (side + side % 2 for side in self._size)
                stream.codec_context.colorspace, stream.codec_context.color_range = BT709, LIMITED
            stream.codec_context.time_base = TIME_BASE
            self._stream = stream
            if self._aspect:
                stream.sample_aspect_ratio = self._aspect
            if self._sound:
                self._connect(self._sound, time)

    def _connect(self, sound: Sound, start: float) -> None:
        how = sound.connect(self._container, start)
        if how == "left out":
            self.remarks += (
                f"{self.path.name} has no sound: {self.path.suffix} cannot contain {sound.codec}",
            )
            self._sound = None
        elif how != "copied":
            self.remarks += (
                f"the sound of {self.path.name} is converted from {sound.codec} to {how}",
            )

    def _frame(self, pixels: npt.NDArray[Any]) -> Any:
        make = self._av.VideoFrame.from_ndarray
        if self._labels:
            if pixels.ndim == 2:
                return make(pixels, format="gray" if pixels.dtype == np.uint8 else "gray16le")
            return make(np.ascontiguousarray(pixels), format="rgb24").reformat(format="bgr0")
        height, width = self._size
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = make(np.ascontiguousarray(pixels), format="rgb24")
        return frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)

    def _mux_sound(self, until: float) -> None:
        assert self._sound
        for packet in self._sound.packets(until):
            self._container.mux(packet)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # the bases of FFmpeg's errors
            raise OutputError(
                f"{self.path} cannot be written: {error}.",
                fix="Check the free space, or choose another format, e.g. .mkv.",
            ) from error

    def close(self) -> None:
        """Complete the file. Without frames, none is written."""
        with self._resources:
            if self._first is None:
                return
            with self._reporting():
                if self._sound:
                    length = self._last * TIME_BASE + 1 / self._rate
                    self._mux_sound(self._first + float(length))
                self._container.mux(self._stream.encode())
                self._container.close()
                self._staged.replace(self._target)
                self._first = None  # closing again does nothing


def check_format(path: Path, kind: Kind) -> None:
    """Check that a kind of video can be written with the suffix of this file.

    Raises:
        UsageError: it cannot.
    """
    known = list(CODECS) if kind == "overlay" else [LABEL_SUFFIX]
    if path.suffix.lower() not in known:
        raise UsageError(
            f"A video of the {kind} cannot be written as {path.suffix or 'a file without suffix'}: "
            f"{path}.",
            fix=f"Use {', '.join(known)}.",
        )


def _label_format(pixels: npt.NDArray[Any]) -> str:
    if pixels.ndim == 3:
        return "bgr0"
    return "gray" if pixels.dtype == np.uint8 else "gray16le"
