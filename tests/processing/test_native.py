"""The compiled kernels check their arguments themselves, too: inconsistent sizes, tables or numbers
never make them read or write outside their arrays."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import literal
import numpy as np
import pytest
from cuda_place import make_logits, make_spec

from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.processing import Processor, compiled, pixels
from eomt_deploy.processing.compiled import WRONG_ARGUMENTS, pointer
from eomt_deploy.processing.geometry import Geometry, plan
from eomt_deploy.processing.pixels import MaskResize
from eomt_deploy.processing.semantic import class_probabilities

GEOMETRY = Geometry((50, 70), (64, 48), (64, 64))
FAR = (-1, 10_000, 2**31 - 1, -(2**31))


@pytest.fixture
def resize() -> MaskResize:
    found = pixels.mask_resize((16, 16), GEOMETRY)
    return MaskResize(found.down.copy(), found.across.copy())  # the original is cached


MASKS = np.random.default_rng(0).normal(size=(3, 16, 16), scale=5).astype(np.float32)
SCORES = np.ones(3, np.float32)


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("place", [0, 20, -1])
@pytest.mark.parametrize("side", ["down", "across"])
def test_positions_outside_of_a_mask_are_refused(resize, side, place, value):
    getattr(resize, side)["first"][place] = value
    with pytest.raises(UsageError, match="are inconsistent"):
        pixels.paint_queries(MASKS, resize, SCORES, 0.5)
    with suppress(UsageError):  # it may also skip the wrong entry
        pixels.measure_masks(np.ones((1, 16, 16), np.float32), [0], resize)


def test_positions_that_go_back_are_refused(resize):
    resize.down["first"][20] = 0  # a tile would read more rows than were computed for it
    with pytest.raises(UsageError, match="are inconsistent"):
        pixels.paint_queries(MASKS, resize, SCORES, 0.5)


def test_scores_of_other_masks_are_refused(resize):
    with pytest.raises(UsageError, match="3 masks need 3 scores"):
        pixels.paint_queries(MASKS, resize, SCORES[:2], 0.5)


def test_owners_without_a_segment_are_refused():
    owners = np.zeros((4, 40), np.int16)
    owners[3, 39] = 2
    labels, boxes = pixels.label_segments(owners, np.array([0, 1, 2, -1], np.int32))
    assert labels[3, 39] == 3
    assert boxes == [(0, 0, 40, 4), (40, 4, 0, 0), (39, 3, 40, 4)]
    with pytest.raises(UsageError, match="are inconsistent"):
        pixels.label_segments(owners, np.array([0, 1, -1], np.int32))


NUMBERS = {
    "windows": 2, "queries": 3, "lanes": 16, "classes": 5, "mask_height": 4, "mask_width": 4,
    "input_height": 16, "input_width": 16, "merged_height": 24, "merged_width": 16, "axis": 0,
    "stretch_count": 3, "height": 30, "width": 20, "tile_rows": 20, "tile_columns": 20,
    "wide": 0,
}  # fmt: skip
TABLES = ("starts", "stretches", "input_down", "input_across", "image_down")


def job(*, table: str = "", place: int = 0, value: int = 0, **numbers: int):
    """A job of two windows with changed numbers or table entries, and its arrays."""
    assert [name for name, kind in pixels.Job._fields_ if kind is ctypes.c_int32] == [*NUMBERS]
    taps = pixels.logit_table
    arrays = [
        MASKS[None, :, :4, :4].repeat(2, 0).copy(), np.ones((2, 5, 16), np.float32),
        np.array([0, 8], np.int32), pixels.stretches(((0, 16), (8, 24))), taps(4, 16), taps(4, 16),
        taps(24, 30), taps(16, 20), np.zeros((30, 20), np.uint8),
    ]  # fmt: skip
    if table:
        arrays[2 + TABLES.index(table)].reshape(-1).view(np.int32)[place] = value
    return pixels.Job(*map(pointer, arrays), *(NUMBERS | numbers).values()), arrays


def classify(**changes) -> int:
    made, arrays = job(**changes)
    result = compiled.library().classify_pixels(ctypes.byref(made), 0, 30)
    assert (arrays[-1] == 0).all()  # all classes are equal: the first one wins, if any is written
    return result


def test_a_job_that_fits():
    assert classify() == 0


UNBOUNDED = ("width", "height", "classes", "merged_height", "tile_rows", "tile_columns")
"""The kernel cannot check the maximum of these."""


@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("name", NUMBERS)
def test_jobs_whose_numbers_are_absurd(name, value):
    if (value or name not in ("axis", "wide")) and not (name in UNBOUNDED and value > 0):
        assert classify(**{name: value}) == WRONG_ARGUMENTS


@pytest.mark.parametrize(
    "change",
    [{"lanes": 17}, {"queries": 17}, {"axis": 1}, {"merged_width": 17}, {"merged_height": 23},
     {"input_height": 17}, {"mask_height": 3}, {"mask_width": 3}, {"classes": 1 << 15}],
    ids=str,
)  # fmt: skip
def test_jobs_whose_numbers_contradict_each_other(change):
    assert classify(**change) == WRONG_ARGUMENTS


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize(
    ("table", "place"),
    [("starts", 1), ("stretches", 1), ("stretches", 6), ("stretches", 7), ("input_down", 20),
     ("input_across", 21), ("image_down", 40)],
)  # fmt: skip
def test_jobs_whose_tables_lead_out_of_their_arrays(table, place, value):
    assert classify(table=table, place=place, value=value) == WRONG_ARGUMENTS


def test_tiles_of_any_size():
    for side in (1, 7, 2**31 - 1):
        assert classify(tile_rows=side, tile_columns=side) == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("image", [(60, 1), (1, 60), (33, 20), (17, 40)])
@pytest.mark.parametrize("classes", [2, 40])
def test_windows_of_a_few_pixels(size, image, classes):
    """A tile then overlaps many windows; earlier code had no room for so many."""
    try:
        geometry = plan(image, size, "windows")
    except Exception as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(geometry.num_inputs, 20, classes + 1), scale=3).astype(np.float32)
    masks = rng.normal(size=(geometry.num_inputs, 20, *size), scale=5).astype(np.float32)
    found = pixels.classify_pixels(class_probabilities(logits), masks, geometry)
    scores = literal.class_scores(logits, masks, geometry)
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4 * best[0]).numpy()
    assert (found == scores.argmax(0).numpy())[clear].all()
    assert clear.mean() > 0.5


def test_thousands_of_classes_and_queries():
    """The class lists of a part do not fit on the stack of a thread."""
    spec = make_spec("semantic", (64, 64), queries=70, classes=5000)
    geometry = plan((66, 70), (64, 64), "windows")
    classes, masks = make_logits(spec, geometry.num_inputs, 1)
    scores = literal.class_scores(classes, masks, geometry)
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4 * best[0]).numpy()
    found = Processor(spec).postprocess(classes, masks, geometry).class_map
    assert (found == scores.argmax(0).numpy())[clear].all()


def test_what_is_not_a_number_owns_nothing(resize):
    """Python rejects NaN earlier, but the kernels must still be free of undefined behaviour."""
    masks = np.full((3, 16, 16), np.nan, np.float32)
    owner, areas = pixels.paint_queries(masks, resize, SCORES, 0.5)
    assert (owner == -1).all()
    assert (areas[0] == 0).all()
    assert pixels.measure_masks(masks, [0], resize)[0][0].area == 0
    masks[1] = np.inf
    masks[2] = -np.inf
    owner, _ = pixels.paint_queries(masks, resize, SCORES, 0.5)
    assert set(np.unique(owner)) <= {-1, 1}  # infinity times a weight of 0 is NaN
    spec = make_spec("semantic")
    geometry = plan((99, 77), (64, 64), "windows")
    logits, masks = make_logits(spec, geometry.num_inputs, 3)
    for changed in (logits * np.nan, logits):
        pixels.classify_pixels(class_probabilities(changed), masks * np.nan, geometry)


def test_kernels_of_another_version_are_refused(monkeypatch):
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled, "VERSION", 1)
    with pytest.raises(MissingDependencyError, match=r"it has version 3, .* needs 1"):
        compiled.library()
    compiled.library.cache_clear()
