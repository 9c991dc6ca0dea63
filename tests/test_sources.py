from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.sources import load_image


def test_arrays_of_every_shape(gradient):
    grey = gradient[:, :, 0]
    rgba = np.dstack([gradient, grey])
    assert load_image(gradient) is gradient or np.shares_memory(load_image(gradient), gradient)
    assert (load_image(gradient, color_order="bgr") == gradient[:, :, ::-1]).all()
    assert (load_image(rgba) == gradient).all()
    for array in (grey, grey[:, :, None]):
        assert (load_image(array) == grey[:, :, None]).all()
        assert load_image(array).shape == (*grey.shape, 3)


def test_bytes_and_open_files(image_path, tmp_path):
    wanted = load_image(image_path)
    data = image_path.read_bytes()
    for source in (data, bytearray(data), io.BytesIO(data)):
        np.testing.assert_array_equal(load_image(source), wanted)
    with image_path.open("rb") as file:
        np.testing.assert_array_equal(load_image(file), wanted)
    with pytest.raises(ImageError, match=r"cannot be read: .*closed file"):
        load_image(file)
    with image_path.open(encoding="latin-1") as text, pytest.raises(ImageError, match="not bytes"):
        load_image(text)
    for nothing in (b"", b"no image", io.BytesIO(b"no image")):
        with pytest.raises(ImageError, match="is not an image"):
            load_image(nothing)
    with pytest.raises(ImageError, match="more than the limit of 100"):
        load_image(data, max_pixels=100)


def test_tensors(gradient):
    tensor = torch.from_numpy(gradient.copy())
    channels_first = tensor.permute(2, 0, 1).contiguous()
    for source in (tensor, channels_first, tensor.permute(2, 0, 1)):
        np.testing.assert_array_equal(load_image(source), gradient)
    bgr = load_image(channels_first, color_order="bgr")
    np.testing.assert_array_equal(bgr, gradient[..., ::-1])
    np.testing.assert_array_equal(load_image(tensor[..., 0])[..., 1], gradient[..., 0])
    for wrong, words in (
        (channels_first / 255, "must be uint8, got float32"),
        (channels_first[None], r"shape \[1, 3, 37, 53\] is not one image(.|\n)*as a list"),
        (tensor[:3, :, :], "may have its channels first or last"),
        (tensor.to(torch.bfloat16), "cannot be converted to a numpy array"),
    ):
        with pytest.raises(ImageError, match=words):
            load_image(wrong)
    learned = (tensor / 255).requires_grad_()
    with pytest.raises(ImageError, match="must be uint8"):
        load_image(learned)


def test_path_and_pil_agree(picture, gradient):
    assert (load_image(picture) == gradient).all()
    assert (load_image(str(picture)) == gradient).all()
    assert (load_image(Image.open(picture)) == gradient).all()


def test_exif_orientation_is_applied(tmp_path, gradient):
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90 degrees clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(gradient).save(path, exif=exif)
    assert (load_image(path) == np.rot90(gradient, k=-1)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_pil_modes_become_rgb(mode, gradient):
    image = Image.fromarray(gradient).convert(mode)
    assert (load_image(image) == np.asarray(image.convert("RGB"))).all()


def test_cmyk_jpeg_file(tmp_path, gradient):
    path = tmp_path / "print.jpg"
    Image.fromarray(gradient).convert("CMYK").save(path, quality=95)
    assert load_image(path).shape == gradient.shape


def test_palette_with_transparency(tmp_path, gradient):
    path = tmp_path / "palette.png"
    Image.fromarray(gradient).convert("P").save(path, transparency=0)
    assert load_image(path).shape == gradient.shape


def test_16_bit_is_refused_with_words(tmp_path, gradient):
    import cv2

    deep = gradient.astype(np.uint16) * 257
    for name, array in (("grey.png", deep[:, :, 0]), ("colour.png", deep)):
        cv2.imwrite(str(tmp_path / name), array)
        with pytest.raises(ImageError, match=r"bits(.|\n)*Scale the image to 8 bits"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="uint16"):
        load_image(deep)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((3, 40, 50), np.uint8), "channels last"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
    ],
)
def test_arrays_that_are_no_image(array, word):
    with pytest.raises(ImageError, match=word):
        load_image(array)


def test_unknown_color_order(gradient):
    with pytest.raises(UsageError, match="'rgb' or 'bgr'"):
        load_image(gradient, color_order="gbr")


def test_files_that_are_no_image(tmp_path, image_path):
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(image_path.read_bytes()[:20_000])
    for path, word in (
        (text, "not an image"),
        (cut, "cannot be decoded"),
        (tmp_path, "folder"),
        (tmp_path / "none.jpg", "no image at"),
    ):
        with pytest.raises(ImageError, match=word):
            load_image(path)
    with pytest.raises(ImageError, match="address"):
        load_image("https://example.com/cat.jpg")
    with pytest.raises(ImageError, match="An object of type dict is not an image"):
        load_image({})


def test_16_bit_tiff_and_ppm_are_refused(tmp_path, gradient):
    import cv2

    deep = gradient.astype(np.uint16) * 257
    for name in ("deep.tif", "deep.ppm"):
        cv2.imwrite(str(tmp_path / name), deep)
        with pytest.raises(ImageError, match="8 bits"):
            load_image(tmp_path / name)
        cv2.imwrite(str(tmp_path / name), gradient[:, :, ::-1])
        assert (load_image(tmp_path / name) == gradient).all()


def test_color_order_of_what_knows_its_own(picture):
    for source in (picture, Image.open(picture)):
        with pytest.raises(UsageError, match="for arrays"):
            load_image(source, color_order="bgr")


def test_truncated_pil_image(tmp_path, image_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(image_path.read_bytes()[:20_000])
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(Image.open(cut))


@pytest.mark.parametrize(
    "make",
    [
        np.matrix,
        lambda a: np.ma.masked_array(a),
        lambda a: a.view(np.recarray) if a.dtype.names else a.view(type("Own", (np.ndarray,), {})),
        lambda a: np.ma.masked_array(a, mask=np.zeros(a.shape, bool)),
    ],
)
def test_subclasses_of_arrays(gradient, make):
    grey = gradient[:, :, 0]
    found = load_image(make(grey))
    assert type(found) is np.ndarray
    assert (found == grey[:, :, None]).all()


def test_a_masked_array_is_refused(gradient):
    mask = np.zeros(gradient.shape, bool)
    mask[3, 4] = True
    with pytest.raises(ImageError, match=r"3 masked values(.|\n)*filled"):
        load_image(np.ma.masked_array(gradient, mask))


def test_arrays_with_odd_strides(gradient, exported):
    big = np.zeros((80, 110, 4), np.uint8)
    big[1:75:2, 2:108:2, 1:] = gradient
    planes = np.ascontiguousarray(gradient.transpose(2, 0, 1))
    views = {
        "steps": big[1:75:2, 2:108:2, 1:],
        "planes": planes.transpose(1, 2, 0),
        "columns first": np.asfortranarray(gradient),
        "backwards": np.ascontiguousarray(gradient[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
        "read only": np.frombuffer(gradient.tobytes(), np.uint8).reshape(gradient.shape),
        "not aligned": np.frombuffer(b"x" + gradient.tobytes(), np.uint8, offset=1).reshape(
            gradient.shape
        ),
    }
    with Segmenter(exported("semantic")) as segmenter:
        wanted = segmenter.predict(gradient)
        for name, view in views.items():
            assert (load_image(view) == gradient).all(), name
            result = segmenter.predict(view)
            assert (result.class_map == wanted.class_map).all(), name
            assert (np.asarray(result.overlay()) == np.asarray(wanted.overlay())).all(), name
        one = np.broadcast_to(gradient[:1, :1], gradient.shape)  # strides of 0
        assert (segmenter.predict(one).class_map == segmenter.predict(one.copy()).class_map).all()
