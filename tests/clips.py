"""Video files and streams for tests."""

from __future__ import annotations

import http.server
import io
import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
UNIT = Fraction(1, 90_000)


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Pixels:
    """A grey image whose brightness is the number modulo 30, with a red corner (top left)."""
    pixels = np.full((*size, 3), 40 + 7 * (number % 30), np.uint8)
    pixels[: size[0] // 3, : size[1] // 3] = (220, 20, 20)
    return pixels


def number_of(pixels: Pixels) -> int:
    """The frame number of :func:`picture`, from the centre."""
    height, width = pixels.shape[:2]
    return round((float(pixels[height // 2, width // 2].mean()) - 40) / 7)


def write_clip(
    path: Path,
    times: Sequence[float],
    *,
    frame: Callable[[int], Pixels] = picture,
    sound: bool | str = False,
    codec: str = "libx264",
    colorspace: int | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write frames with these times in seconds; .avi files have 25 frames per second.

    ``sound`` adds a tone: True as AAC, or the name of an encoder of FFmpeg.
    """
    unit = Fraction(1, 25) if path.suffix == ".avi" else UNIT
    height, width = frame(0).shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = 5
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        track = None
        if sound:
            track = container.add_stream("aac" if sound is True else sound, rate=48_000)
        for number, time in enumerate(times):
            image = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            image.pts, image.time_base = round(time / unit), unit
            container.mux(stream.encode(image))
        container.mux(stream.encode())
        if track:
            for start in range(0, round(48_000 * (times[-1] + 0.04)), 1024):
                wave = np.sin((start + np.arange(1024)) / 20).astype(np.float32)
                samples = av.AudioFrame.from_ndarray(
                    np.stack([wave, wave]), format="fltp", layout="stereo"
                )
                samples.sample_rate, samples.pts = 48_000, start
                container.mux(track.encode(samples))
            container.mux(track.encode())
    return path


def turn_clockwise(path: Path) -> None:
    """Let players turn the picture of an .mp4 file by 90 degrees, as phones do."""
    set_display_matrix(path, 0, 1, -1, 0)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Let players show the point (x, y) of an .mp4 file at (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, version 0 of the box
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


class QuietServer(http.server.ThreadingHTTPServer):
    """Prints nothing if a reader leaves before the end."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def mjpeg_server(
    *,
    interval: float = 0.01,
    lose_after: int | None = None,
    connections: int = 1000,
    path: str = "/camera.mjpg?user=secret",
) -> Iterator[str]:
    """An address of an endless stream, whose frames are numbered modulo 30.

    Args:
        interval: seconds between frames.
        lose_after: number of frames after which each connection is cut.
        connections: number of connections that are answered; later ones get an error.
        path: the end of the address.
    """
    accepted = itertools.count(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if next(accepted) > connections:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            for number in itertools.count():
                if number == lose_after:
                    return
                buffer = io.BytesIO()
                Image.fromarray(picture(number)).save(buffer, "JPEG", quality=95)
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {buffer.tell()}"
                try:
                    self.wfile.write(head.encode() + b"\r\n\r\n" + buffer.getvalue() + b"\r\n")
                except OSError:  # the reader left
                    return
                time.sleep(interval)

        def log_message(self, *_: object) -> None:
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{path}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """An address of the files in a folder, from a server that cannot send parts of them."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
