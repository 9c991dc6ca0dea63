"""Video files, on a disk or a web server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

from eomt_deploy.addresses import is_address, scrubbed, without_secrets
from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.units import counted
from eomt_deploy.video.frames import Frame, Video, import_av, to_pixels

TIMEOUT_SECONDS = 20.0
"""Maximum time that a server takes to answer."""
HDR_CURVES = (16, 18)
"""Transfer characteristics (ITU-T H.273) of HDR10 and HLG."""


class VideoFile(Video):
    """A video file.

    The rotation that phones store is applied. Frames keep their own times, which need not be
    regular.

    Args:
        source: path or http(s) address.
        every: take only each n-th frame.
        start: seconds to leave out at the start.
        end: time in seconds at which to stop; None reads to the end.
        max_pixels: maximum number of pixels of a frame; None takes 100,000,000.

    Attributes:
        size: (H, W) of the upright frames.
        time_base: unit of the time stamps in the file, in seconds.

    Raises:
        ImageError: there is no such file, or no video in it.
        UsageError: ``every``, ``start`` or ``end`` is not usable.
        MissingDependencyError: PyAV is not installed.
    """

    live = False

    def __init__(
        self,
        source: str | Path,
        *,
        every: int = 1,
        start: float = 0,
        end: float | None = None,
        max_pixels: int | None = None,
    ) -> None:
        check_range(every, start, end)
        self.source, self.name = str(source), without_secrets(str(source))
        self._av: Any = import_av()
        self._every, self._start, self._end = every, start, math.inf if end is None else end
        self._damaged = self._taken = 0
        self._container = open_container(self.source)
        try:
            self._stream = self._video_stream()
            self._check_size(check_max_pixels(max_pixels))
            first = self._first_frame()
        except BaseException:
            self._container.close()
            raise
        self.size = (first.height, first.width)
        if round(first.rotation / 90) % 2:
            self.size = self.size[::-1]
        self._hdr = int(first.color_trc) in HDR_CURVES
        self.time_base: Fraction = self._stream.time_base
        self.rate = self._rate()
        self.count = self._count()

    def _video_stream(self) -> Any:
        pictures = self._av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & pictures]
        if not streams:
            raise ImageError(f"{self.name} contains no video.", fix="Pass a video file.")
        streams[0].thread_type = "AUTO"
        return streams[0]

    def _check_size(self, max_pixels: int) -> None:
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > max_pixels:
            raise ImageError(
                f"{self.name} has {width}x{height} pixels per frame, more than {max_pixels}.",
                fix="Make it smaller, or pass a larger max_pixels.",
            )

    def _first_frame(self) -> Any:
        """The first frame, which has the rotation; the file is rewound after it."""
        frame = next(self._decoded(), None)
        if frame is None:
            raise ImageError(
                f"{self.name} contains no frame that can be decoded.", fix="Repair or replace it."
            )
        self._container.seek(self._origin, stream=self._stream)
        self._damaged = 0
        return frame

    @property
    def _origin(self) -> int:
        """Time stamp of the start."""
        return self._stream.start_time or 0

    @property
    def origin_seconds(self) -> float:
        """The time in the container that is time 0 of the frames."""
        return float(self._origin * self.time_base)

    def _rate(self) -> Fraction | None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return Fraction(rate) / self._every if rate else None

    def _count(self) -> int | None:
        if self._stream.duration:
            seconds = float(self._stream.duration * self.time_base)
        elif self._container.duration:
            seconds = self._container.duration / self._av.time_base
        else:
            return None
        left = max(0.0, min(seconds, self._end) - self._start)
        return math.ceil(left * self.rate) if self.rate else None

    @property
    def remarks(self) -> tuple[str, ...]:
        found = []
        if self._damaged:
            found.append(f"left out {counted(self._damaged, 'damaged part')} of {self.name}")
        if self._hdr:
            found.append(
                f"{self.name} is an HDR video, and its colours are not converted to those of "
                "photos: results can be worse"
            )
        return tuple(found)

    def __iter__(self) -> Iterator[Frame]:
        if self._start:
            place = self._origin + round(self._start / self.time_base)
            self._container.seek(place, stream=self._stream)  # to a key frame before it
        numbers = count()
        for frame in self._decoded():
            time = float((frame.pts - self._origin) * self.time_base)
            if time < self._start:
                continue
            if time >= self._end:
                break
            number = next(numbers)
            if number % self._every == 0:
                self._taken += 1
                yield Frame(to_pixels(frame), time, number)
        if not self._taken:
            raise ImageError(
                f"{self.name} has no frame at or after {self._start:g} s.",
                fix="Choose an earlier start, or a later end.",
            )

    def _decoded(self) -> Iterator[Any]:
        """All frames with a time stamp, without the damaged ones."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except self._av.error.InvalidDataError:
                self._damaged += 1
                continue
            except self._av.error.FFmpegError as error:
                raise ImageError(
                    f"{self.name} cannot be read further: {scrubbed(str(error))}.",
                    fix="Check the file or the connection.",
                ) from error
            yield from (frame for frame in frames if frame.pts is not None)

    def close(self) -> None:
        self._container.close()


def check_range(every: int, start: float, end: float | None) -> None:
    """Check which frames are wanted.

    Raises:
        UsageError: no frame can be meant.
    """
    if every < 1:
        raise UsageError(f"every must be 1 or more, got {every}.", fix="every=1 takes all frames.")
    if not 0 <= start < math.inf:
        raise UsageError(f"start must be 0 or more seconds, got {start}.", fix="start=0")
    if end is not None and not end > start:
        raise UsageError(
            f"end must be later than start ({start:g} s), got {end:g} s.", fix="Leave end out."
        )


def open_container(source: str, **options: Any) -> Any:
    """Open a file or an address with FFmpeg.

    Raises:
        ImageError: it cannot be opened.
    """
    av: Any = import_av()
    if is_address(source):
        options = {"timeout": TIMEOUT_SECONDS, **options}
    else:  # "concat:" and other protocols of FFmpeg are not file names
        options = {"options": {"protocol_whitelist": "file"}, **options}
    try:
        return av.open(source, **options)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"{without_secrets(source)} cannot be opened as a video: {scrubbed(reason)}.",
            fix="Check that it exists and is a video.",
        ) from error
