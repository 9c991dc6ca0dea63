"""The C library's geometry and network inputs are those of Python."""

from __future__ import annotations

import c_library
import numpy as np
import PIL
import pytest
from c_library import RELEASE, picture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_logits import make_spec
from PIL import Image

from eomt_deploy.errors import ImageError
from eomt_deploy.processing import Processor
from eomt_deploy.processing.geometry import Geometry, plan
from eomt_deploy.processing.tables import shrinks_down_first
from eomt_deploy.spec import TASKS

sides = st.integers(1, 400)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def geometry_of(handle: c_library.Handle, model: c_library.Handle) -> Geometry:
    """The Python geometry with the values of the C library."""
    size = model.get("height"), model.get("width")
    axis, windows = handle.get("axis"), ()
    if model.get("resize") == c_library.RESIZES.index("windows"):
        starts = [handle.get("window_start", i) for i in range(handle.get("inputs"))]
        windows = tuple((start, start + size[axis]) for start in starts)
    return Geometry(
        (handle.get("height"), handle.get("width")),
        (handle.get("scaled_height"), handle.get("scaled_width")),
        size, windows, axis,
    )  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(TASKS), grids, st.integers(1, 40_000), st.integers(1, 40_000))
@example("semantic", (4, 4), 1, 64)
@example("semantic", (4, 4), 1, 65)
@example("panoptic", (6, 6), 125, 192)  # 62.5 is rounded to 62
@example("panoptic", (4, 4), 1, 129)
def test_the_geometry_is_that_of_python(task, grid, height, width):
    spec = make_spec(task, (grid[0] * 16, grid[1] * 16))
    model = c_library.read_model(spec)
    try:
        wanted = plan((height, width), spec.image_size, spec.resize)
    except ImageError:
        with pytest.raises(c_library.CallError, match="aspect ratio") as failure:
            c_library.plan(model, height, width)
        assert failure.value.code == c_library.WRONG_IMAGE
        return
    found = c_library.plan(model, height, width)
    assert geometry_of(found, model) == wanted
    assert found.get("inputs") == wanted.num_inputs
    assert (
        found.get("input_bytes") == wanted.num_inputs * spec.image_size[0] * spec.image_size[1] * 3
    )


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TASKS), grids, sides, sides, st.integers(0, 99))
@example("panoptic", (2, 2), 400, 3, 0)  # the height first
@example("semantic", (4, 4), 64, 64, 0)
@example("semantic", (4, 4), 64, 200, 0)
def test_the_bytes_are_those_of_python(task, grid, height, width, seed):
    spec = make_spec(task, (grid[0] * 16, grid[1] * 16))
    image = picture(height, width, seed)
    try:
        wanted, _ = Processor(spec).preprocess(image)
    except ImageError:
        return
    model = c_library.read_model(spec)
    found = c_library.preprocess(model, c_library.plan(model, height, width), image, pillow=RELEASE)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(1080, 1920), (3000, 200), (427, 640)])
def test_images_of_real_sizes(task, size):
    spec = make_spec(task, (640, 640))
    image = picture(*size)
    wanted, _ = Processor(spec).preprocess(image)
    model = c_library.read_model(spec)
    found = c_library.preprocess(model, c_library.plan(model, *size), image, pillow=RELEASE)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (200, 31)])
def test_other_pixel_formats_and_rows_with_gaps(task, size):
    model = c_library.read_model(make_spec(task))
    geometry = c_library.plan(model, *size)
    image = picture(*size)
    wanted = c_library.preprocess(model, geometry, image)
    alpha = picture(*size, seed=1, channels=1)
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    wide = np.concatenate([image, picture(size[0], 9)], axis=1)[:, : size[1]]
    for format, pixels in ((c_library.BGR, bgr), (c_library.RGB, wide),
                           (c_library.RGBA, np.dstack([image, alpha])),
                           (c_library.BGRA, np.dstack([bgr, alpha]))):  # fmt: skip
        found = c_library.preprocess(model, geometry, pixels, format)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("release", "version"), [(0, (13, 0)), (1, (12, 2)), (2, (11, 0))])
@pytest.mark.parametrize("size", [(300, 40), (1000, 9), (400, 300), (90, 400)])
def test_the_order_of_other_releases_of_pillow(monkeypatch, release, version, size):
    """Two calls of Pillow that resize one side each have its order."""
    from eomt_deploy.processing import tables

    monkeypatch.setattr(tables, "PILLOW", version)
    spec = make_spec("panoptic")
    image = picture(*size)
    geometry = plan(size, spec.image_size, spec.resize)
    height, width = geometry.scaled_size
    between = (
        (size[1], height) if shrinks_down_first(size, geometry.scaled_size) else (width, size[0])
    )
    scaled = Image.fromarray(image).resize(between, Image.Resampling.BILINEAR)
    wanted = np.zeros((1, 64, 64, 3), np.uint8)
    wanted[0, :height, :width] = scaled.resize((width, height), Image.Resampling.BILINEAR)
    model = c_library.read_model(spec)
    found = c_library.preprocess(model, c_library.plan(model, *size), image, pillow=release)
    np.testing.assert_array_equal(found, wanted, err_msg=PIL.__version__)


def test_wrong_arguments():
    model = c_library.read_model(make_spec("semantic"))
    geometry = c_library.plan(model, 50, 70)
    image = picture(50, 70)
    inputs = np.zeros(geometry.get("input_bytes"), np.uint8)
    good = [geometry.pointer, image.ctypes.data, 210, 0, 0, inputs.ctypes.data, inputs.size]
    assert c_library.call("preprocess", *good) == c_library.OK
    for place, value in (
        (0, None), (1, None), (2, 0), (2, 209), (2, 2**63), (2, 2**64 - 1), (3, -1), (3, 4), (3, 2),
        (4, -1), (4, 3), (5, None), (6, 0), (6, inputs.size - 1), (6, 2**63),
    ):  # fmt: skip
        changed = [*good]
        changed[place] = value
        assert c_library.call("preprocess", *changed) == c_library.WRONG_ARGUMENT, (place, value)
        assert c_library.message()
    for size in ((0, 5), (5, 0), (-1, 5), (-(2**31), 5), (2**31 - 1, 1), (1 << 16, 1 << 16)):
        with pytest.raises(c_library.CallError) as failure:
            c_library.plan(model, *size)
        assert failure.value.code == c_library.WRONG_IMAGE
    assert c_library.call("geometry_plan", None, 5, 5, None) == c_library.WRONG_ARGUMENT
    assert c_library.call("geometry_plan", model.pointer, 5, 5, None) == c_library.WRONG_ARGUMENT
    assert geometry.get("window_start", -1) == geometry.get("window_start", 99) == 0
    for name in (
        "inputs",
        "height",
        "width",
        "scaled_height",
        "scaled_width",
        "axis",
        "input_bytes",
    ):
        assert c_library.call(f"geometry_{name}", None) == 0
    c_library.call("geometry_free", None)
