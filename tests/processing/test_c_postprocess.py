"""The C library's results are those of Python: labels, classes, scores, areas, boxes and runs."""

from __future__ import annotations

import ctypes
import json
import math
from dataclasses import replace

import c_library
import numpy as np
import pytest
from cuda_place import make_logits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_logits import make_spec

from eomt_deploy.errors import ImageError
from eomt_deploy.processing import Processor
from eomt_deploy.processing.geometry import plan
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import TASKS

share = st.floats(0, 1)


def compare(spec, size, classes, masks, **thresholds) -> Segmentation:
    processor = Processor(spec)
    wanted = processor.postprocess_with(
        classes, masks, plan(size, spec.image_size, spec.resize),
        replace(spec.thresholds, **thresholds),
    )  # fmt: skip
    model = c_library.read_model(spec)
    geometry = c_library.plan(model, *size)
    c_library.assert_equal(
        c_library.postprocess(model, geometry, classes, masks, **thresholds), wanted
    )
    return wanted


def logits_of(spec, size, seed):
    geometry = plan(size, spec.image_size, spec.resize)
    return make_logits(spec, geometry.num_inputs, seed)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(TASKS), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 250),
    st.integers(1, 250), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), share, share,
    share,
)  # fmt: skip
@example("panoptic", (4, 4), 90, 99, 12, 5, 1, 0.0, 0.5, 0.0)
@example("panoptic", (4, 4), 90, 99, 12, 5, 1, 1.0, 0.5, 0.8)  # nothing is chosen
@example("instance", (4, 4), 90, 99, 30, 30, 1, 0.0, 0.5, 0.8)  # more than 100 candidates
@example("semantic", (1, 1), 50, 250, 3, 2, 1, 0.0, 0.5, 0.8)
def test_results_are_those_of_python(
    task, grid, height, width, queries, classes, seed, score, mask, overlap
):
    spec = make_spec(task, (grid[0] * 16, grid[1] * 16), queries, classes)
    try:
        made = logits_of(spec, (height, width), seed)
    except ImageError:
        return
    compare(spec, (height, width), *made, score=score, mask=mask, overlap=overlap)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_results_with_the_thresholds_of_the_model(task, seed):
    spec = make_spec(task, (160, 160), 60, 30)
    found = compare(spec, (417, 380), *logits_of(spec, (417, 380), seed))
    assert len(found) > 3 or task == "panoptic"
    if task == "panoptic":
        made = logits_of(spec, (417, 380), seed)
        assert len(compare(spec, (417, 380), *made, overlap=0.1).segments) > 3


@pytest.mark.parametrize("task", TASKS)
def test_an_image_of_full_size(task):
    spec = make_spec(task, (320, 320), 100, 133)
    compare(spec, (1080, 1920), *logits_of(spec, (1080, 1920), 5))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("classes", [255, 256, 300])
def test_more_labels_than_a_byte_can_hold(task, classes):
    spec = make_spec(task, (64, 64), 300, classes)
    rng = np.random.default_rng(0)
    logits = np.full((1, 300, classes + 1), -9, np.float32)
    logits[0, np.arange(300), rng.integers(0, classes, 300)] = 9
    masks = np.full((1, 300, 16, 16), -9, np.float32)
    for query in range(256):  # one segment for each mask pixel
        masks[0, query, query // 16, query % 16] = 9
    compare(spec, (64, 64), logits, masks, overlap=0.0)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8), (40, 8)])
def test_masks_smaller_than_three_pixels(task, size):
    spec = replace(make_spec(task, (16, 16)), image_size=size, patch_size=8, num_upscale=0)
    compare(spec, (50, 70), *logits_of(spec, (50, 70), 1), score=0.0, overlap=0.0)


@pytest.mark.parametrize("task", TASKS)
def test_equal_scores_keep_their_order(task):
    spec = make_spec(task, (64, 64), 30, 9)
    masks = logits_of(spec, (90, 90), 1)[1]
    compare(spec, (90, 90), np.zeros((1, 30, 10), np.float32), masks, score=0.0, overlap=0.0)
    masks[:] = masks[:, :1]
    compare(spec, (90, 90), np.zeros((1, 30, 10), np.float32), masks, score=0.0, overlap=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 50.0, 1e30])
@pytest.mark.parametrize("task", TASKS)
def test_tiny_and_huge_logits(task, scale):
    spec = make_spec(task)
    classes, masks = logits_of(spec, (70, 50), 2)
    compare(
        spec, (70, 50), classes * np.float32(min(scale, 50)), masks * np.float32(scale), score=0.0
    )


def test_wrong_arguments():
    spec = make_spec("panoptic")
    model = c_library.read_model(spec)
    geometry = c_library.plan(model, 70, 50)
    classes, masks = logits_of(spec, (70, 50), 2)
    pointer = ctypes.c_void_p()
    good = [
        model.pointer, geometry.pointer, classes.ctypes.data, classes.size, masks.ctypes.data,
        masks.size, -1.0, -1.0, -1.0, ctypes.byref(pointer),
    ]  # fmt: skip
    assert c_library.call("postprocess", *good) == c_library.OK
    c_library.call("result_free", pointer)
    other = c_library.read_model(make_spec("panoptic", (96, 64)))
    windows = c_library.plan(c_library.read_model(make_spec("semantic")), 70, 50)
    for place, value in (
        (0, None), (1, None), (2, None), (4, None), (9, None), (0, other.pointer),
        (1, windows.pointer), (3, 0), (3, classes.size - 1), (3, 2**64 - 1), (5, 0),
        (5, masks.size + 1), (6, 1.1), (7, math.nan), (8, math.inf),
    ):  # fmt: skip
        changed = [*good]
        changed[place] = value
        assert c_library.call("postprocess", *changed) == c_library.WRONG_ARGUMENT, (place, value)
        assert c_library.message()
        assert not pointer.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("task", TASKS)
def test_logits_that_are_not_finite(task, place, value):
    spec = make_spec(task)
    model = c_library.read_model(spec)
    made = logits_of(spec, (64, 64), 2)
    made[place][0, -1, -1] = value
    with pytest.raises(c_library.CallError, match="NaN or infinite") as failure:
        c_library.postprocess(model, c_library.plan(model, 64, 64), *made)
    assert failure.value.code == c_library.NOT_FINITE


def test_getters_without_a_segment():
    spec = make_spec("instance")
    model = c_library.read_model(spec)
    result = c_library.postprocess(
        model, c_library.plan(model, 64, 64), *logits_of(spec, (64, 64), 2), score=0.9
    )
    count = result.get("count")
    for place in (-1, count, 2**31 - 1, -(2**31)):
        assert result.get("class", place) == -1
        assert math.isnan(result.get("score", place))
        assert result.get("area", place) == result.get("run_count", place) == 0
        assert result.get("box", place) is None
        assert result.get("runs", place) is None
        with pytest.raises(c_library.CallError, match="number of a segment"):
            c_library.mask(result, place)
    assert result.get("mask", 0, None, 4096) == c_library.WRONG_ARGUMENT
    pixels = np.zeros(4096, np.uint8)
    assert result.get("mask", 0, pixels.ctypes.data, 4095) == c_library.WRONG_ARGUMENT
    for name, value in {"task": -1, "height": 0, "width": 0, "count": 0, "label_bytes": 0,
                        "labels": None}.items():  # fmt: skip
        assert c_library.call(f"result_{name}", None) == value
    c_library.call("result_free", None)


def test_thresholds_come_from_the_description():
    spec = make_spec("panoptic")
    made = logits_of(spec, (64, 64), 2)
    data = json.loads(spec.to_json())
    counts = []
    for score in (0.0, 1.0):
        data["thresholds"] = {"score": score, "mask": 0.5, "overlap": 0.0}
        model = c_library.read_model(json.dumps(data))
        result = c_library.postprocess(model, c_library.plan(model, 64, 64), *made)
        counts.append(result.get("count"))
    assert counts[0] > counts[1] == 0
