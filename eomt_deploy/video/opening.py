"""Recognise a video by its name, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eomt_deploy.addresses import STREAM_PREFIXES, is_address
from eomt_deploy.errors import UsageError
from eomt_deploy.video.files import VideoFile, open_container
from eomt_deploy.video.frames import Video
from eomt_deploy.video.live import LiveVideo

FILE_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv",
    ".flv", ".3gp", ".ogv",
})  # fmt: skip
PLAYLISTS = (".m3u8", ".mpd")
STREAM_SUFFIXES = frozenset({".m3u8", ".mpd", ".mjpg", ".mjpeg", ".sdp", ".cgi"})
"""Suffixes of addresses of live streams: HLS, DASH, Motion JPEG."""


def is_video(source: object) -> bool:
    """Whether a source is a camera number, or the name or address of a video.

    A number as text is a camera unless there is a file with this name.
    """
    if isinstance(source, int):
        return not isinstance(source, bool)
    if not isinstance(source, str | Path):
        return False
    text = str(source)
    if text.isascii() and text.isdecimal():
        return not Path(text).exists()
    return _is_stream(text) or _suffix(text) in FILE_SUFFIXES


def is_live(source: int | str | Path) -> bool:
    """Whether a video is a camera or a stream."""
    text = str(source)
    return _is_stream(text) or (is_video(source) and text.isdecimal())


def open_video(
    source: int | str | Path,
    *,
    every: int = 1,
    start: float = 0,
    end: float | None = None,
    latest: bool = True,
    max_pixels: int | None = None,
) -> Video:
    """Open a video file, a network stream or a camera.

    Args:
        source: path or http(s) address of a video file, address of a stream (rtsp://, rtmp://,
            an http(s) address that ends with .m3u8, .mjpg …), or the number of a camera.
        every: take only each n-th frame.
        start: seconds to leave out at the start of a file.
        end: time in seconds at which to stop.
        latest: for streams and cameras: drop frames instead of lagging behind.
        max_pixels: maximum number of pixels of a frame of a file; None takes 100,000,000.

    Raises:
        ImageError: it cannot be opened, or contains no video.
        DeviceError: there is no such camera.
        UsageError: the range of frames is not usable.
        MissingDependencyError: PyAV is not installed: ``pip install 'eomt-deploy[video]'``.
    """
    text = str(source)
    if not is_live(source) or _is_recording(text):
        return VideoFile(text, every=every, start=start, end=end, max_pixels=max_pixels)
    if start:
        raise UsageError(
            "A camera or stream has no start time.", fix="Leave start out; end is a duration."
        )
    place: Any = int(text) if text.isdecimal() else text
    return LiveVideo(place, every=every, end=end, latest=latest)


def _is_stream(text: str) -> bool:
    if text.lower().startswith(STREAM_PREFIXES):
        return True
    return is_address(text) and _suffix(text) in STREAM_SUFFIXES


def _suffix(text: str) -> str:
    if not is_address(text):
        return Path(text).suffix.lower()
    try:
        parts = urlsplit(text)
    except ValueError:  # not a valid address
        return ""
    # The fragment can say what the server's path does not: http://camera/live#.mjpg
    fragment = parts.fragment.lower()
    return fragment if fragment.startswith(".") else Path(parts.path).suffix.lower()


def _is_recording(address: str) -> bool:
    """Whether a playlist (HLS, DASH) has an end."""
    if _suffix(address) not in PLAYLISTS:
        return False
    with open_container(address) as container:
        return container.duration is not None
