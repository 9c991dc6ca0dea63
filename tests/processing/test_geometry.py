from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.errors import ImageError
from eomt_deploy.processing.geometry import cover_size, letterbox_size, plan, window_spans


@pytest.mark.shared_data
def test_official_sizes_and_windows(shared):
    cases = json.loads((shared / "golden/postproc/sizes.json").read_text())
    assert len(cases) > 200
    for case in cases:
        size = (case["img_size"], case["img_size"])
        image = tuple(case["image_hw"])
        assert list(cover_size(image, size)) == case["semantic_scaled_hw"]
        assert list(letterbox_size(image, size)) == case["panoptic_scaled_hw"]
        if case["windows"]:
            assert [list(w) for w in plan(image, size, "windows").windows] == case["windows"]


def test_sizes_round_half_to_even():
    assert letterbox_size((125, 192), (96, 96)) == (62, 96)  # 62.5
    assert cover_size((128, 201), (64, 64)) == (64, 100)  # 100.5


@given(st.integers(32, 700), st.integers(1, 20_000))
def test_windows_cover_every_pixel(window, extra):
    length = window + extra - 1
    spans = window_spans(length, window)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == window for start, end in spans)
    assert all(b[0] <= a[1] for a, b in pairwise(spans))


def test_the_last_pixel_that_the_official_code_loses():
    # int(7 * (320 - 316 / 7)) is 1923, but 2244 - 320 is 1924: the official result is NaN.
    assert window_spans(2244, 320)[-1] == (1924, 2244)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48)])
@given(image=st.tuples(st.integers(30, 900), st.integers(30, 900)))
def test_plans_fit(size, image):
    covering = plan(image, size, "windows")
    across = 1 - covering.axis
    assert covering.scaled_size[across] == size[across]
    assert covering.scaled_size[covering.axis] >= size[covering.axis]
    scaled = letterbox_size(image, size)
    assert scaled[0] <= size[0]
    assert scaled[1] <= size[1]
    assert scaled[0] == size[0] or scaled[1] == size[1]


def test_too_thin_an_image_is_refused():
    with pytest.raises(ImageError, match="more than 64 windows"):
        plan((1, 65), (64, 64), "windows")
    with pytest.raises(ImageError, match="shrinks to 0x64"):
        plan((1, 640), (64, 64), "letterbox")
