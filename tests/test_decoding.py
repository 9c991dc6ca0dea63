"""Damaged files, files that decode to gigabytes, and the EXIF orientation."""

from __future__ import annotations

import io
import random
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from eomt_deploy.decoding import FORMATS
from eomt_deploy.errors import ImageError
from eomt_deploy.sources import decode_image, decode_labelled, load_image, readable_images

ORIENTATION = 0x0112
# NumPy operations that turn an image upright, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}
# A lossless encoding for each format, or the best quality if there is none.
SAVE = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"}}  # fmt: skip


def encoded(array: np.ndarray, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **SAVE.get(format, {}), **options)
    return buffer.getvalue()


def exif(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """An EXIF block with the given tags: (tag, type, count, 4 bytes)."""
    block = b"Exif\0\0" + (b"MM\0*" if order == ">" else b"II*\0")
    block += struct.pack(f"{order}IH", 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, count) + value
    return block + bytes(4)


def turned(value: int, order: str = ">") -> tuple[int, int, int, bytes]:
    return (ORIENTATION, 3, 1, struct.pack(f"{order}HH", value, 0))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_becomes_upright(gradient, format, value):
    tag = Image.Exif()
    tag[ORIENTATION] = value
    data = encoded(gradient, format, exif=tag)
    stored = decode_image(encoded(gradient, format), "x")
    assert (decode_image(data, "x") == UPRIGHT[value](stored)).all()
    with Image.open(io.BytesIO(data)) as opened:
        assert (load_image(opened) == UPRIGHT[value](stored)).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "odd",
    [
        (0x0106, 3, 2, b"\0\1\0\2"),  # PhotometricInterpretation with two values
        (0x0131, 5, 1, b"\0\0\0\0"),  # Software as a fraction whose offset is outside the block
        (0x011A, 5, 1, b"\0\0\0\1"),  # a resolution of 0/0
        (0x010F, 2, 0xFFFF, b"\0\0\1\0"),  # a text longer than the block
        (0x0110, 99, 1, b"abcd"),  # a type that does not exist
        (0x0103, 7, 0xFFFFFFFF, b"\xff\xff\xff\xff"),
        (0x8769, 4, 1, b"\xff\xff\xff\xff"),  # a directory outside the block
        (0x0128, 2, 4, b"\0\0\0\0"),
    ],
)
def test_an_odd_tag_does_not_matter(gradient, tmp_path, odd, order):
    for tags in ([odd, turned(6, order)], [turned(6, order), odd]):
        path = tmp_path / "odd.jpg"
        path.write_bytes(encoded(gradient, exif=exif(*tags, order=order)))
        found = load_image(path)
        assert (found == np.rot90(load_image(cv2_stored(path, tmp_path)), -1)).all()


def cv2_stored(path: Path, folder: Path) -> Path:
    """The content of a file with the stored pixels, which OpenCV reads without the orientation."""
    target = folder / "stored.png"
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    cv2.imwrite(str(target), cv2.imread(str(path), flags))
    return target


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0MM",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense" * 9,
        exif((ORIENTATION, 3, 1, b"\0\x63\0\0")),  # 99
        exif((ORIENTATION, 3, 1, b"\0\0\0\0")),
    ],
)
def test_exif_without_a_usable_orientation(gradient, block):
    plain = decode_image(encoded(gradient), "x")
    assert (decode_image(encoded(gradient, exif=block), "x") == plain).all()


def test_orientation_as_imagemagick_stores_it_in_a_png(gradient):
    block = exif(turned(3))
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    assert (decode_image(encoded(gradient, "PNG", pnginfo=text), "x") == gradient[::-1, ::-1]).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_pixels_are_those_of_opencv(tmp_path, image_path, format):
    pixels = cv2.imread(str(image_path))[::2, ::2, ::-1]
    path = tmp_path / f"image{FORMATS[format][0]}"
    path.write_bytes(encoded(np.ascontiguousarray(pixels), format))
    assert (load_image(path) == cv2.imread(str(path))[:, :, ::-1]).all()


def test_a_jpeg_of_a_phone_with_a_second_image_inside(gradient):
    buffer = io.BytesIO()
    second = Image.fromarray(np.zeros_like(gradient))
    Image.fromarray(gradient).save(
        buffer, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0
    )
    data = buffer.getvalue()
    wanted = decode_image(encoded(gradient), "x")
    assert (decode_image(data, "x") == wanted).all()
    index, second_start = data.index(b"MPF\0"), data.index(b"\xff\xd8\xff", 3)
    wrong_index = data[: index + 4] + b"\xff" * 40 + data[index + 44 :]
    for damaged in (wrong_index, data[: second_start + 50], data[:second_start]):
        assert (decode_image(damaged, "x") == wanted).all()


def test_the_first_image_of_an_animation(gradient):
    first = Image.fromarray(gradient)
    others = [Image.fromarray(gradient[::-1])]
    for format in ("PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        first.save(buffer, format, save_all=True, append_images=others, **SAVE.get(format, {}))
        assert (decode_image(buffer.getvalue(), "x") == gradient).all()


def test_ppm_with_comments(tmp_path):
    body = bytes([1, 2, 3, 250, 251, 252])
    for header in (
        b"P6\n# " + b"c" * 5000 + b"\n2 1\n255\n",
        b"P6 # a\n# b\n2 # width\n1\n# depth\n255\n",
    ):
        assert decode_image(header + body, "x").tolist() == [[[1, 2, 3], [250, 251, 252]]]
    with pytest.raises(ImageError, match="8 bits"):
        decode_image(b"P6\n# " + b"c" * 5000 + b"\n2 1\n65535\n" + body * 2, "x")
    with pytest.raises(ImageError, match="8 bits"):
        decode_image(b"P3 1 1 65535 1 2 3\n", "x")


OTHERS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n",
    "dds": b"DDS " + struct.pack("<I", 124) + bytes(120),
    "blp": b"BLP1" + bytes(200),
    "psd": b"8BPS\0\1" + bytes(60),
    "spider": struct.pack(">27f", *([1.0] * 27)) + bytes(2000),
    "xbm": b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {",
    "damaged avif": b"\0\0\0\x1cftypavif" + bytes(40),
    "mif1": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40),
    "empty": b"",
    "jpeg start": b"\xff\xd8\xff",
    "webp start": b"RIFF\xff\xff\0\0WEBPVP8 ",
    "gif": b"GIF89a\1\0\1\0\0\0\0",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_an_image_of_our_formats(monkeypatch, tmp_path, kind):
    def start(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
    path = tmp_path / "x.jpg"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(ImageError, match=r"x\.jpg"):
        load_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about damaged TIFF tags
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_one_error(gradient, format):
    """A few hundred mutations of each format; tests/hostile runs more."""
    data = encoded(gradient, format)
    rng = random.Random(0)
    failed = []
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            place = rng.randrange(min(len(damaged), rng.choice((40, 200, len(damaged)))))
            damaged[place] = rng.choice((0, 255, rng.randrange(256)))
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            decode_image(bytes(damaged), "damaged")
        except ImageError as error:
            failed.append(error.what)
    assert failed
    assert all(what.startswith("damaged ") for what in failed)


def test_names_that_cannot_be_files(tmp_path):
    for name in ("a\0b.jpg", "\ud800.jpg", "x" * 5000 + ".jpg", tmp_path / "a\0b.jpg"):
        with pytest.raises(ImageError) as caught:
            load_image(name)
        str(caught.value).encode()  # the message can be printed


def test_labels_belong_to_the_stored_pixels(gradient):
    data = {v: encoded(gradient, "PNG", exif=exif(turned(v))) for v in range(1, 9)}
    for value, content in data.items():
        pixels, orientation, applied = decode_labelled(content, "x", (37, 53))
        assert (pixels == gradient).all()
        assert (orientation, applied) == (value, False)
        # Labels that were drawn on the upright image.
        pixels, orientation, applied = decode_labelled(content, "x", (53, 37))
        assert (orientation, applied) == (value, value >= 5)
        wanted = UPRIGHT[value](gradient) if applied else gradient
        assert pixels.shape == wanted.shape
        assert (pixels == wanted).all()


def test_one_unreadable_image_among_many(tmp_path, gradient):
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for path in paths:
        Image.fromarray(gradient).save(path)
    assert readable_images(paths, "calibration") == (paths, [])
    paths[3].write_bytes(b"")
    found, notes = readable_images(paths, "calibration")
    assert found == paths[:3] + paths[4:]
    assert len(notes) == 1
    assert "1 of 9 images for calibration cannot be read" in notes[0]
    assert str(paths[3]) in notes[0]
    for path in paths[4:]:
        path.write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"3 of 9 images for calibration can be read, at least 4"):
        readable_images(paths, "calibration")
    assert readable_images(paths[:1], "calibration") == (paths[:1], [])
    with pytest.raises(ImageError, match=r"0 of 1 image(.|\n)*3\.png"):
        readable_images(paths[3:4], "calibration")


@pytest.mark.shared_data
def test_the_cases_of_the_development_data(shared):
    cases = shared / "cases"
    for path in sorted((cases / "exif").iterdir()):
        assert (load_image(path) == cv2.imread(str(path))[:, :, ::-1]).all()
    for path in sorted((cases / "images").iterdir()):
        if path.name in ("60x1.png", "ppm_long_comment.ppm"):
            assert load_image(path).size
        else:
            with pytest.raises(ImageError):
                load_image(path)
