"""Video files, on a disk or a web server."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from typing import Any

from eomt_deploy.addresses import STREAM_PREFIXES, is_address, scrubbed, without_secrets
from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.units import counted
from eomt_deploy.video.frames import Frame, Video, import_av, is_turned, to_pixels

TIMEOUT_SECONDS = 20.0
"""Maximum time that a server takes to answer."""
EARLIER_SECONDS = (0.0, 2.0, 10.0)
"""How long before the start time to look for it; then the file is read from its beginning."""
LAST_STAMP = 2**62
MAX_UNREADABLE = 100
"""Maximum number of unreadable parts in sequence."""
HDR_CURVES = (16, 18)
"""Transfer characteristics (ITU-T H.273) of HDR10 and HLG."""


class VideoFile(Video):
    """A video file.

    The rotation or mirroring that phones store is applied. Frames keep their own times, which need
    not be regular.

    Args:
        source: path or http(s) address.
        every: take only each n-th frame.
        start: seconds to leave out at the start.
        end: time in seconds at which to stop; None reads to the end.
        max_pixels: maximum number of pixels of a frame; None takes 100,000,000.

    Attributes:
        size: (H, W) of the upright frames.
        time_base: unit of the time stamps in the file, in seconds.
        pixel_aspect: width of a pixel divided by its height; None if it is not known.

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
        self._last: float | None = None
        self._closed = threading.Event()
        self._container: Any = None
        try:
            self._open()
            self._check_size(check_max_pixels(max_pixels))
            self._frames = self._decoded()
            first = self._first_frame()
        except BaseException:
            self.close()
            raise
        self._frames = chain([first], self._frames)
        self.size = (first.height, first.width)
        if is_turned(first):
            self.size = self.size[::-1]
        self._hdr = int(first.color_trc) in HDR_CURVES
        self.time_base: Fraction = self._stream.time_base
        self.pixel_aspect: Fraction | None = self._stream.sample_aspect_ratio or None
        self.rate = self._rate()
        self._seconds = self._duration()
        self.count = self._count()

    def _open(self) -> None:
        """Open the file, or open it again at its beginning."""
        if self._container is not None:
            self._container.close()
        self._container = open_container(self.source)
        self._stream = self._video_stream()
        # The times of frames in AVI files are in the order in which they are decoded.
        self._counted = self._container.format.name == "avi" and bool(self._stream.average_rate)

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
        frame = next(self._frames, None)
        if frame is None:
            raise ImageError(
                f"{self.name} contains no frame that can be decoded.", fix="Repair or replace it."
            )
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

    def _duration(self) -> float | None:
        """Length of the picture in seconds, if the file knows it."""
        if self._stream.duration:
            return float(self._stream.duration * self.time_base)
        noted = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", self._stream.metadata.get("DURATION", ""))
        if noted:  # Matroska
            first = float(self._origin * self.time_base)
            return 3600 * int(noted[1]) + 60 * int(noted[2]) + float(noted[3]) - first
        if self._container.duration and not self._container.streams.audio:
            return float(self._container.duration / self._av.time_base)
        return None

    def _count(self) -> int | None:
        if self._seconds is None or not self.rate:
            return None
        left = max(0.0, min(self._seconds, self._end) - self._start)
        return math.ceil(left * self.rate)

    @property
    def remarks(self) -> tuple[str, ...]:
        found = []
        if self._damaged:
            found.append(f"left out {counted(self._damaged, 'damaged part')} of {self.name}")
        if self._last is not None and self._seconds is not None:
            missing = self._seconds - self._last
            if missing > max(1, self._seconds / 20):
                found.append(
                    f"{self.name} ended at {self._last:.1f} of {self._seconds:.1f} s: it is "
                    "incomplete"
                )
        if self._hdr:
            found.append(
                f"{self.name} is an HDR video, and its colours are not converted to those of "
                "photos: results can be worse"
            )
        return tuple(found)

    def __iter__(self) -> Iterator[Frame]:
        if self._closed.is_set():
            raise UsageError("This video is closed.", fix="Open it again with open_video().")
        numbers = count()
        last = None
        for frame, time in self._timed(self._start):
            if time < self._start:
                continue
            if time >= self._end:
                break
            number = next(numbers)
            last = time
            if number % self._every == 0:
                self._taken += 1
                yield Frame(to_pixels(frame, self.name), time, number)
        else:  # not because of an end time
            self._last = last
        if not self._taken and not self._closed.is_set():
            raise ImageError(
                f"{self.name} has no frame at or after {self._start:g} s.",
                fix="Choose an earlier start, or a later end.",
            )

    def _timed(self, start: float) -> Iterator[tuple[Any, float]]:
        """The frames from a time on, and some before it, with their times."""
        if self._counted:
            rate = self._stream.average_rate
            return ((frame, float(number / rate)) for number, frame in enumerate(self._frames))
        frames = self._sought(start) if start else self._frames
        return ((frame, self._time(frame)) for frame in frames)

    def _sought(self, start: float) -> Iterator[Any]:
        """The frames from a time on. Some formats land after the wanted frame: try earlier ones."""
        for early in EARLIER_SECONDS:
            if early >= start:
                break
            self._open()
            place = self._origin + round((start - early) / self.time_base)
            try:
                self._container.seek(min(place, LAST_STAMP), stream=self._stream)
            except self._av.error.FFmpegError:  # e.g. a server that cannot send parts
                break
            frames = self._decoded()
            first = next(frames, None)
            if first is not None and self._time(first) <= start:
                return chain([first], frames)
        self._open()
        return self._decoded()

    def _time(self, frame: Any) -> float:
        return float((frame.pts - self._origin) * self.time_base)

    def _decoded(self) -> Iterator[Any]:
        """All frames with a time stamp, without the damaged ones."""
        packets = self._container.demux(self._stream)
        unreadable = 0
        while not self._closed.is_set():
            try:
                packet = next(packets)
                unreadable = 0
            except StopIteration:
                return
            except self._av.error.InvalidDataError:  # it ends the generator
                self._damaged += 1
                unreadable += 1
                if unreadable > MAX_UNREADABLE:
                    return
                packets = self._container.demux(self._stream)
                continue
            except self._av.error.FFmpegError as error:
                raise ImageError(
                    f"{self.name} cannot be read further: {scrubbed(str(error))}.",
                    fix="Check the file or the connection.",
                ) from error
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError:
                self._damaged += 1
                continue
            for frame in frames:
                if self._counted or frame.pts is not None:
                    yield frame
                    if self._closed.is_set():
                        return

    def close(self) -> None:
        self._closed.set()
        if self._container is not None:
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
    place = source
    if source.lower().startswith(STREAM_PREFIXES):
        pass
    elif is_address(source):
        place = source.partition("#")[0]  # FFmpeg would send the fragment
        options = {"timeout": TIMEOUT_SECONDS, **options}
    else:  # "concat:" and other protocols of FFmpeg are not file names, but 12:30.mp4 is one
        options = {"options": {"protocol_whitelist": "file"}, **options}
        place = f"file:{source}"
    try:
        return av.open(place, **options)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"{without_secrets(source)} cannot be opened as a video: {scrubbed(reason)}.",
            fix="Check that it exists and is a video.",
        ) from error
