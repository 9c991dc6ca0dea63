"""Small files that decode to gigabytes are refused after reading the header, without allocation."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.decoding import FORMATS, MAX_PIXELS
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.sources import decode_image, load_image


def encoded(array: np.ndarray, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of 1-bit pixels whose header declares a size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(
            ">I", zlib.crc32(name + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def tiled_tiff(side: int, tile: int) -> bytes:
    """A TIFF with one tile that is larger than the image."""
    content = zlib.compress(bytes(tile), 9)
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile),
               (323, tile), (324, 134), (325, len(content))]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return (
        head + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries) + bytes(4) + content
    )


BOMBS = {
    "png": png(13000, 13000, zlib.compress(bytes(13000 * 1626), 9)),
    "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0!\xf9\4\x08\0\0\0\0,"
    + struct.pack("<4H", 0, 0, 65535, 65535) + b"\0\x08",
    "ppm": b"P6 60000 60000 255\n",
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF" + struct.pack("<I", 34) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0"
    + b"\xff\xff\0" * 2 + b"ANIM" + struct.pack("<IIH", 6, 0, 0),
    "tile of a tiff": tiled_tiff(16, 30000),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="The peak of memory is read from /proc.")
@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_of_gigabytes_are_refused(tmp_path, kind):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[kind])
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from eomt_deploy.errors import ImageError\n"
        "from eomt_deploy.sources import load_image\n"
        "try:\n    load_image(sys.argv[1])\nexcept ImageError as error:\n    print(error)\n"
        # Not ru_maxrss: a child process inherits that of its parent.
        "print(re.search('VmHWM:(.*) kB', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    message, peak = done.stdout.strip().rsplit("\n", 1)
    assert f"more than the limit of {MAX_PIXELS:,}" in message
    assert "--max-pixels" in message
    assert int(peak) / 1024 < 300


def test_the_error_says_how_to_go_on(tmp_path):
    path = tmp_path / "wide.png"
    path.write_bytes(png(14000, 13000, zlib.compress(bytes(13000 * 1751), 9)))
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "14000x13000" in str(caught.value)
    assert "182,000,000 pixels, more than the limit of 100,000,000" in str(caught.value)
    assert "--max-pixels 200000000" in str(caught.value)
    assert "Shrink the image" in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_our_limit_and_not_pillows(monkeypatch, gradient):
    """Pillow's own limit has no effect here, but is still valid for other users of Pillow."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format in FORMATS:
        data = encoded(gradient, format)
        assert decode_image(data, "x").shape == gradient.shape
        with pytest.raises(ImageError, match="limit of 1,960"):
            decode_image(data, "x", max_pixels=1960)
        assert decode_image(data, "x", max_pixels=1961).shape == gradient.shape
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(encoded(gradient)))


def test_the_limit_is_one_of_the_thread(gradient):
    data = encoded(gradient, "TIFF", compression="tiff_deflate")
    wrong = []

    def work(limit: int) -> None:
        for _ in range(50):
            try:
                decode_image(data, "x", max_pixels=limit)
            except ImageError:
                wrong.extend([limit] * (limit > 1960))
            else:
                wrong.extend([limit] * (limit < 1961))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (10, 1961, 5000, 1960)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pil_images_that_are_not_loaded_yet(gradient):
    for format in FORMATS:
        image = Image.open(io.BytesIO(encoded(gradient, format)))
        with pytest.raises(ImageError, match="limit of 100"):
            load_image(image, max_pixels=100)
        image.load()
        assert load_image(image, max_pixels=100).shape == gradient.shape
    assert load_image(gradient, max_pixels=100).shape == gradient.shape
    assert load_image(Image.fromarray(gradient), max_pixels=100).shape == gradient.shape


def test_a_file_that_is_larger_than_its_image_can_be(tmp_path):
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate(900_000_000)
    with pytest.raises(ImageError, match="larger than 800 MB"):
        load_image(path)


def test_limits_that_make_no_sense(picture, exported):
    for wrong in (0, -5, 2.5, True, "many"):
        with pytest.raises(UsageError, match="at least 1"):
            load_image(picture, max_pixels=wrong)
    assert load_image(picture, max_pixels=np.int64(1961)).size
    with pytest.raises(UsageError, match="at least 1"):
        Segmenter(exported("semantic"), max_pixels=0)


def test_segmenter_has_a_limit(picture, exported):
    with Segmenter(exported("semantic"), max_pixels=100) as segmenter:
        for run in (segmenter.predict, segmenter.logits, lambda p: segmenter.predict_batch([p])):
            with pytest.raises(ImageError, match="limit of 100"):
                run(picture)
        found = list(segmenter.stream([picture, load_image(picture)], return_errors=True))
        assert isinstance(found[0], ImageError)
        assert found[1].size == (37, 53)
