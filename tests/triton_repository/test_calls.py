"""The parts of the Python models that need no server."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from eomt_deploy.errors import DeviceError, ImageError, UsageError
from eomt_deploy.processing import Processor
from eomt_deploy.triton.calls import (
    Call,
    Thresholds,
    as_text,
    batches,
    check_numpy,
    group_equal,
    read_call,
    read_thresholds,
    select_gpu,
)

PANOPTIC = Processor(tiny.spec("panoptic"))


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("", Thresholds()),
        ("{}", Thresholds()),
        ('{"score_threshold": 0.25}', Thresholds(0.25)),
        ('{"mask_threshold": "0.5", "overlap_threshold": 1}', Thresholds(None, 0.5, 1)),
        ('{"priority": 3, "header": "x"}', Thresholds()),
    ],
)
def test_thresholds(parameters, wanted):
    assert read_thresholds(parameters, PANOPTIC) == wanted


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('{"score_treshold": 1}', "no parameter 'score_treshold'"),
        ('{"threshold": 1}', "no parameter 'threshold'"),
        ('{"score_threshold": true}', "must be a number, got True"),
        ('{"score_threshold": "high"}', "must be a number, got 'high'"),
        ('{"score_threshold": 1.5}', "between 0 and 1"),
        ('{"score_threshold": NaN}', "between 0 and 1"),
    ],
)
def test_thresholds_that_are_refused(parameters, words):
    with pytest.raises(UsageError) as error:
        read_thresholds(parameters, PANOPTIC)
    assert words in error.value.what


def test_a_threshold_of_another_task():
    with pytest.raises(UsageError, match="does not apply to a semantic model"):
        read_thresholds('{"score_threshold": 0.5}', Processor(tiny.spec("semantic")))


def test_an_image_is_never_a_path():
    call = read_call(np.array([[b"/etc/hostname"], [b"x"]], object), "", PANOPTIC)
    assert call.images == [b"/etc/hostname", b"x"]
    with pytest.raises(TypeError):
        read_call(np.array([["/etc/hostname"]], object), "", PANOPTIC)
    with pytest.raises(UsageError, match="is empty"):
        read_call(np.empty((0, 1), object), "", PANOPTIC)


def test_requests_with_equal_thresholds_are_one_group():
    calls = {0: Call([b"a"], Thresholds()), 1: Call([b"b"], Thresholds(0.5)),
             3: Call([b"c"], Thresholds())}  # fmt: skip
    assert [list(group) for group in group_equal(calls)] == [[0, 3], [1]]


@pytest.mark.parametrize(
    ("count", "limits", "wanted"),
    [
        (1, (1, 8), [(1, 1)]),
        (8, (1, 8), [(8, 8)]),
        (11, (1, 8), [(8, 8), (3, 3)]),
        (5, (4, 4), [(4, 4), (4, 1)]),
        (1, (2, 4), [(2, 1)]),
    ],
)
def test_batches_have_a_size_that_the_network_takes(count, limits, wanted):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros((4, 4, 3), np.uint8)
    parts = list(batches(images, *limits))
    assert [(len(part), real) for part, real in parts] == wanted
    assert np.array_equal(np.concatenate([part[:real] for part, real in parts]), images)


def test_an_error_is_one_line():
    error = ImageError("It is damaged.", why="Two\nlines.", fix="Send it again.")
    assert as_text(error) == "E203: It is damaged. Why: Two lines. Fix: Send it again."
    assert as_text(UsageError("Short.")) == "E201: Short."


@pytest.mark.parametrize(
    ("numpy", "triton", "warned"),
    [
        ("1.26.4", "24.10", False),
        ("2.1.0", "24.12", False),
        ("2.4.6", "25.01", False),
        ("2.1.0", None, True),
        ("2.1.0", "unknown", True),
    ],
)
def test_versions_of_numpy(numpy, triton, warned):
    assert ("needs Triton 24.12" in check_numpy(numpy, triton)) == warned


def test_numpy_2_in_an_old_server():
    with pytest.raises(
        DeviceError, match=r"Triton 24\.10 cannot exchange texts with numpy 2\.1\.0"
    ):
        check_numpy("2.1.0", "24.10")


@pytest.mark.parametrize(
    ("index", "visible", "wanted"),
    [(0, None, "0"), (3, None, "3"), (1, "4,6", "6"), (1, "GPU-a,GPU-b", "GPU-b"), (0, "", "0")],
)
def test_each_instance_sees_its_gpu(index, visible, wanted):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    select_gpu(index, environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": wanted}
