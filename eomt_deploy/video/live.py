"""Cameras and network streams, whose frames arrive in real time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from eomt_deploy.addresses import without_secrets
from eomt_deploy.errors import DeviceError, EomtDeployError, ImageError
from eomt_deploy.sources import RgbImage
from eomt_deploy.units import counted
from eomt_deploy.video.files import MAX_UNREADABLE, check_range, open_container
from eomt_deploy.video.frames import Frame, Video, import_av, to_pixels

OPEN_SECONDS, FRAME_SECONDS = 10.0, 10.0
"""Maximum time until a stream answers, and between its frames."""
PATIENCE_SECONDS = 60.0
"""Time in which a lost stream must be found again."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before a lost stream is opened again: doubled after each attempt."""
KEPT_FRAMES = 64
"""Maximum number of waiting frames if all are wanted; then reading waits."""

Images = Iterator[RgbImage]


class LiveVideo(Video):
    """A camera or a network stream. A thread reads it, from the first iteration on.

    A stream that is lost is opened again. If the network is slower than the stream, frames are
    dropped, so that results belong to the present.

    Args:
        source: number of a camera, or the address of a stream (rtsp://, http:// …).
        every: take only each n-th frame.
        end: stop after this number of seconds; None never stops.
        latest: drop frames that are older than the newest one. Without it, all frames are
            returned, and a stream can lag behind.
        patience: seconds in which a lost stream must be found again.
        options: options of FFmpeg for the stream.

    Attributes:
        dropped: number of frames that were dropped so far.
        reconnected: number of times that the stream was opened again.

    Raises:
        UsageError: ``every`` or ``end`` is not usable.
        DeviceError: there is no such camera.
        ImageError: the stream cannot be opened.
        MissingDependencyError: PyAV is not installed (only streams need it).
    """

    live = True
    rate: Fraction | None = None
    count: int | None = None

    def __init__(
        self,
        source: int | str,
        *,
        every: int = 1,
        end: float | None = None,
        latest: bool = True,
        patience: float = PATIENCE_SECONDS,
        options: dict[str, str] | None = None,
    ) -> None:
        check_range(every, 0, end)
        self.name = f"camera {source}" if isinstance(source, int) else without_secrets(source)
        self.dropped = self.reconnected = 0
        self._every, self._end, self._patience = every, end, patience
        self._open: Callable[[], _Source]
        if isinstance(source, int):
            self._open = lambda: _Camera(source)
        else:
            import_av()
            # The frames that FFmpeg reads to recognise the format are old at the first iteration.
            first = {"fflags": "nobuffer"} if latest else {}
            self._open = lambda: _Stream(source, {**first, **(options or {})})
        self._reopen = not isinstance(source, int)
        self._frames: deque[Frame] = deque(maxlen=1 if latest else None)
        self._latest = latest
        self._changed = threading.Condition()
        self._failure: EomtDeployError | None = None
        self._stop = threading.Event()
        self._number = 0
        self._began = self._seen = 0.0
        self._thread: threading.Thread | None = None
        self._source: _Source = self._open()  # now, so that errors are reported at once

    @property
    def remarks(self) -> tuple[str, ...]:
        found = []
        if self.dropped:
            frames = counted(self.dropped, "frame")
            found.append(f"{frames} of {self.name} had to be dropped to stay in real time")
        if self.reconnected:
            found.append(
                f"{self.name} was lost and opened again: {counted(self.reconnected, 'time')}"
            )
        return tuple(found)

    def __iter__(self) -> Iterator[Frame]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name=self.name, daemon=True)
            self._thread.start()
        began = time.monotonic()
        while True:
            with self._changed:
                left = None if self._end is None else max(0.0, began + self._end - time.monotonic())
                ready = self._changed.wait_for(lambda: self._frames or self._stop.is_set(), left)
                if not ready:  # the end, while the stream is silent or lost
                    return
                if not self._frames:
                    if self._failure:
                        raise self._failure
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            if self._end is not None and frame.time >= self._end:
                return
            yield frame

    def _read(self) -> None:
        """Read until the video is closed, has ended, or is lost for too long."""
        self._began = self._seen = time.monotonic()
        while not self._stop.is_set():
            failure = self._pass_on()
            finite = self._source.finite and failure is None
            self._source.close()
            if finite:
                self._end_reading(None)
            elif not self._open_again(failure):
                return

    def _pass_on(self) -> EomtDeployError | None:
        """Pass on the frames of the source until it ends (None) or fails."""
        try:
            for pixels in self._source:
                self._seen = time.monotonic()
                if self._number % self._every == 0:
                    self._put(Frame(pixels, self._seen - self._began, self._number))
                self._number += 1
                if self._stop.is_set():
                    break
        except EomtDeployError as error:
            return error
        except Exception as error:  # the other thread would wait for ever
            return ImageError(f"{self.name} cannot be read: {error}.", fix="Check the source.")
        return None

    def _open_again(self, failure: EomtDeployError | None) -> bool:
        """Open a lost stream again; False if that is not possible any more."""
        lost = failure or ImageError(f"{self.name} has ended.", fix="Check the source.")
        wait = FIRST_WAIT
        while not self._stop.wait(wait):
            if not self._reopen or time.monotonic() - self._seen > self._patience:
                self._end_reading(lost)
                return False
            wait = min(2 * wait, LONGEST_WAIT)
            try:
                self._source = self._open()
            except EomtDeployError as error:
                lost = error
                continue
            self.reconnected += 1
            if self._stop.is_set():
                self._source.close()
            return True
        return False

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if self._latest:
                self.dropped += len(self._frames)
            else:
                self._changed.wait_for(
                    lambda: len(self._frames) < KEPT_FRAMES or self._stop.is_set()
                )
            if not self._stop.is_set():
                self._frames.append(frame)
            self._changed.notify_all()

    def _end_reading(self, failure: EomtDeployError | None) -> None:
        """End the iteration after the waiting frames, with an error if there is one."""
        with self._changed:
            self._failure = failure
            self._stop.set()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading. Waiting frames are lost."""
        with self._changed:
            self._stop.set()
            self._frames.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(OPEN_SECONDS + FRAME_SECONDS)
        else:
            self._source.close()


class _Source:
    """Iterates over the images of a source until it ends or fails.

    Attributes:
        finite: whether it is a recording, which ends by itself.
    """

    finite = False

    def __iter__(self) -> Images:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Stream(_Source):
    def __init__(self, address: str, options: dict[str, str]) -> None:
        if address.startswith("rtsp"):
            options = {"rtsp_transport": "tcp", **options}  # UDP loses parts of frames
        self._name = without_secrets(address)
        self._container = open_container(
            address, options=options, timeout=(OPEN_SECONDS, FRAME_SECONDS)
        )
        if not self._container.streams.video:
            self._container.close()
            raise ImageError(f"{self._name} contains no video.", fix="Check the address.")

        self.finite = self._container.duration is not None

    def __iter__(self) -> Images:
        av: Any = import_av()
        stream = self._container.streams.video[0]
        packets = self._container.demux(stream)
        unreadable = 0
        while True:
            try:
                frames = next(packets).decode()
                unreadable = 0
            except StopIteration:
                return
            except av.error.InvalidDataError:  # a part of it was lost on the way
                unreadable += 1
                if unreadable > MAX_UNREADABLE:
                    return
                packets = self._container.demux(stream)
                continue
            except av.error.FFmpegError as error:
                reason = error.strerror or "no answer"
                raise ImageError(
                    f"{self._name} was lost: {reason}.", fix="Check the source and the network."
                ) from error
            yield from (to_pixels(frame, self._name) for frame in frames)

    def close(self) -> None:
        self._container.close()


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV prints in its own words why a camera does not open."""
    logging: Any = getattr(cv2.utils, "logging", None)
    if logging is None:
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


class _Camera(_Source):
    def __init__(self, number: int) -> None:
        self._number = number
        with _quiet_opencv():
            self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            self._capture.release()
            raise DeviceError(
                f"Camera {number} cannot be opened.",
                why="There is none with this number, another program uses it, or the permission "
                "is missing.",
                fix="Pass the number of a camera: 0 is the first. Close other programs that use "
                "it.",
            )

    def __iter__(self) -> Images:
        while True:
            good, image = self._capture.read()
            if not good:
                raise DeviceError(
                    f"Camera {self._number} stopped.", fix="Check that it is still connected."
                )
            yield np.ascontiguousarray(image[:, :, ::-1], np.uint8)

    def close(self) -> None:
        self._capture.release()
