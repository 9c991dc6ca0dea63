"""JPEG files decoded by libjpeg-turbo directly: the same pixels and errors as with Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eomt_deploy import decoding
from eomt_deploy.errors import ImageError
from eomt_deploy.sources import built_in_images, decode_image


class Counted:
    """simplejpeg, which counts the images that it has decoded."""

    def __init__(self) -> None:
        self.library = decoding.simplejpeg
        self.decoded = 0

    def decode_jpeg_header(self, data):
        return self.library.decode_jpeg_header(data)

    def decode_jpeg(self, data, colors):
        pixels = self.library.decode_jpeg(data, colors)
        self.decoded += 1
        return pixels


def outcome(data, library):
    """Shape and pixels, or the message of the error, with this library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "simplejpeg", library)
        try:
            pixels = decode_image(data, "image")
        except ImageError as error:
            return str(error)
        return pixels.shape, pixels.tobytes()


@st.composite
def jpegs(draw):
    """A JPEG of any usual kind, and whether libjpeg-turbo shall decode it directly."""
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    coarse = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, draw(st.sampled_from([0, 3])))
    mode = draw(st.sampled_from(["RGB", "RGB", "RGB", "L", "CMYK"]))
    options = {
        "quality": draw(st.integers(1, 100)),
        "progressive": draw(st.booleans()),
        "optimize": draw(st.booleans()),
        "restart_marker_blocks": draw(st.integers(0, 4)),
    }
    if mode == "RGB":
        options["subsampling"] = draw(st.sampled_from([0, 1, 2]))
        options["keep_rgb"] = not options["subsampling"] and draw(st.booleans())
    if turn := draw(st.integers(0, 8)):
        exif = Image.Exif()
        exif[decoding.ORIENTATION] = turn
        options["exif"] = exif
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue(), mode != "CMYK" and not options.get("keep_rgb")


@settings(max_examples=200, deadline=None)
@given(jpegs())
def test_the_pixels_are_those_of_pillow(jpeg):
    data, direct = jpeg
    library = Counted()
    found = outcome(data, library)
    assert not isinstance(found, str)
    assert found == outcome(data, None)
    assert library.decoded == direct


@settings(max_examples=250, deadline=None)
@given(jpegs(), st.data())
def test_damaged_files_end_as_with_pillow(jpeg, data):
    content = bytearray(jpeg[0])
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["change", "insert", "remove", "cut"]))
        if kind == "change":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del content[place : place + data.draw(st.integers(1, 9))]
        else:
            content = content[: place + 1]
    assert outcome(bytes(content), Counted()) == outcome(bytes(content), None)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", [0x14, 0x41, 0x12, 0x44, 0x31])
def test_unusual_subsampling(sampling, progressive):
    """The byte of the first component in the header of the frame."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", subsampling=0, progressive=progressive)
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 11] = sampling
    assert outcome(bytes(data), Counted()) == outcome(bytes(data), None)


def test_photos():
    for path in built_in_images():
        library = Counted()
        assert outcome(path.read_bytes(), library) == outcome(path.read_bytes(), None)
        assert library.decoded == 1


@pytest.mark.shared_data
def test_photos_of_a_data_set(shared):
    library = Counted()
    files = sorted((shared / "data" / "coco_panoptic_100").rglob("*.jpg"))
    for path in files:
        assert outcome(path.read_bytes(), library) == outcome(path.read_bytes(), None)
    assert library.decoded == len(files) == 100


def test_damaged_files_print_nothing(capfd):
    """libjpeg would print its warnings to the terminal."""
    data = built_in_images()[0].read_bytes()
    with pytest.raises(ImageError):
        decode_image(data[: len(data) // 2], "image")
    decode_image(data[:5000] + b"\0\0\0" + data[5000:], "image")
    assert capfd.readouterr() == ("", "")
