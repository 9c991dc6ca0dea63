"""Each task compared with a literal implementation of the rules in torch."""

from __future__ import annotations

from dataclasses import replace

import literal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_logits import STUFF, make_logits, make_spec

from eomt_deploy.errors import ImageError, UsageError, VerificationError
from eomt_deploy.processing import Processor, pixels
from eomt_deploy.processing.geometry import plan
from eomt_deploy.processing.panoptic import choose_queries
from eomt_deploy.processing.semantic import class_probabilities
from eomt_deploy.spec import TASKS, Thresholds

TIE = 1e-4
"""Values this close may be ordered either way by rounding."""


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    image=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.sampled_from([(64, 64), (48, 96), (96, 48)]),
    mask=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    thresholds=st.builds(
        Thresholds,
        score=st.sampled_from([0.0, 0.5, 0.8]),
        overlap=st.sampled_from([0.0, 0.5, 0.8]),
    ),
)
def test_panoptic_is_the_literal_rule(seed, image, size, mask, thresholds):
    thresholds = replace(thresholds, mask=mask)
    try:
        geometry = plan(image, size, "letterbox")
    except ImageError:
        return
    classes, masks = make_logits(seed, (1, size[0] // 4, size[1] // 4))
    logits = literal.at_image(masks[0], geometry)
    wanted, segments, areas = literal.panoptic(classes[0], logits, STUFF, thresholds)
    result = Processor(make_spec("panoptic", size)).postprocess_with(
        classes, masks, geometry, thresholds
    )
    chosen = choose_queries(classes[0], thresholds.score)
    on = logits[chosen.queries].sigmoid().numpy()
    decided = (abs(on - mask) > TIE).all(axis=0)
    best = np.sort(chosen.scores[:, None, None] * on, axis=0)
    if len(best) > 1:
        decided &= best[-1] - best[-2] > TIE
    undecided = int((~decided).sum())
    if undecided:  # a segment may exist or not, depending on the rounding of a single pixel
        margin = abs(areas[1] - thresholds.overlap * areas[0])
        if min(margin.min(), areas[0].min(), areas[2].min()) <= undecided:
            return
    assert (result.segment_map == wanted)[decided].all()
    assert [s.class_id for s in result.segments] == [c for c, _ in segments]
    np.testing.assert_allclose(
        [s.score for s in result.segments], [s for _, s in segments], atol=1e-6
    )
    for segment in result.segments:
        own = result.segment_map == segment.id
        assert (segment.mask == own).all()
        assert segment.area == own.sum()
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        assert segment.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 40),
    image=st.tuples(st.integers(4, 300), st.integers(4, 300)),
)
def test_instances_are_the_literal_rule(seed, queries, image):
    try:
        geometry = plan(image, (64, 64), "letterbox")
    except ImageError:
        return
    classes, masks = make_logits(seed, (1, 16, 16), queries)
    logits = literal.at_image(masks[0], geometry).numpy()
    near = (abs(logits) < 1e-3).sum(axis=(1, 2))
    areas = np.maximum((logits > 0).sum(axis=(1, 2)), 1)
    close = 1e-5 + float((near / areas).max())
    wanted, labels, on = literal.instances(classes[0], logits)
    processor = Processor(make_spec("instance", queries=queries))
    found = processor.postprocess(classes, masks, geometry, score_threshold=0).segments
    np.testing.assert_allclose([i.score for i in found], wanted, rtol=close, atol=1e-6)
    for item, label, score, mask in zip(found, labels, wanted, on, strict=True):
        if score > 0.05 and (abs(wanted - score) <= 2 * close).sum() == 1:
            assert item.class_id == label
            assert (item.mask != mask).sum() <= near.max()
            assert item.area == item.mask.sum()
    kept = processor.postprocess(classes, masks, geometry, score_threshold=0.3).segments
    assert [i.score for i in kept] == [i.score for i in found if i.score >= 0.3]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    image=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    size=st.sampled_from([(64, 64), (48, 96), (96, 48)]),
    number=st.sampled_from([2, 4, 60]),
    sharpness=st.sampled_from([1.0, 0.05]),  # 0.05: no class can be ruled out early
)
def test_semantic_is_the_literal_rule(seed, image, size, number, sharpness):
    geometry = plan(image, size, "windows")
    shape = (geometry.num_inputs, size[0] // 4, size[1] // 4)
    classes, masks = make_logits(seed, shape, queries=30, number=number)
    classes, masks = classes * sharpness, masks * sharpness
    scores = literal.class_scores(classes, masks, geometry)
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5 * best[0]).numpy()
    found = pixels.classify_pixels(class_probabilities(classes), masks, geometry)
    assert (found == scores.argmax(0).numpy())[clear].all()
    assert clear.mean() > 0.5


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("task", TASKS)
def test_any_number_of_threads_gives_the_same(task, threads):
    spec = make_spec(task, (160, 160))
    geometry = plan((417, 380), (160, 160), spec.resize)
    classes, masks = make_logits(3, (geometry.num_inputs, 40, 40))
    one = Processor(spec, threads=1).postprocess(classes, masks, geometry)
    other = Processor(spec, threads=threads).postprocess(classes, masks, geometry)
    assert [s.score for s in one.segments] == [s.score for s in other.segments]
    assert [s.box for s in one.segments] == [s.box for s in other.segments]
    for first, second in zip(one.regions(), other.regions(), strict=True):
        assert (first.mask == second.mask).all()


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_logits(task):
    spec = make_spec(task)
    geometry = plan((99, 77), (64, 64), spec.resize)
    classes, masks = make_logits(3, (geometry.num_inputs, 16, 16))
    half = masks.astype(np.float16)
    processor = Processor(spec)
    found = processor.postprocess(classes, half, geometry)
    wanted = processor.postprocess(classes, half.astype(np.float32), geometry)
    assert [s.score for s in found.segments] == [s.score for s in wanted.segments]
    for first, second in zip(found.regions(), wanted.regions(), strict=True):
        assert (first.mask == second.mask).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("which", ["classes", "masks"])
@pytest.mark.parametrize("task", TASKS)
def test_logits_that_are_no_numbers_are_refused(task, which, dtype, value):
    """At any position, even in queries that do not contribute to the result."""
    spec = make_spec(task)
    geometry = plan((99, 77), (64, 64), spec.resize)
    arrays = dict(
        zip(("classes", "masks"), make_logits(3, (geometry.num_inputs, 16, 16)), strict=True)
    )
    arrays["classes"][:, 1:, -1] = 99  # only the first query sees an object
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    processor = Processor(spec, backend="onnxruntime")
    processor.postprocess(*arrays.values(), geometry)
    for place in (0, -1, arrays[which].size // 2):
        changed = {name: array.copy() for name, array in arrays.items()}
        changed[which].flat[place] = value
        with pytest.raises(VerificationError) as error:
            processor.postprocess(*changed.values(), geometry, image="a/street.jpg")
        assert error.value.what == (
            f"{task} (fp32, onnxruntime) gives NaN or infinite logits on a/street.jpg."
        )
        assert error.value.exit_code == 4
        with pytest.raises(VerificationError, match=r"\(fp32\) gives NaN or infinite logits\."):
            Processor(spec).postprocess(*changed.values(), geometry)


def test_logits_beyond_fp32_are_refused_and_the_largest_of_it_are_not():
    spec = make_spec("panoptic")
    geometry = plan((99, 77), (64, 64), "letterbox")
    classes, masks = make_logits(3, (1, 16, 16))
    masks[:] = np.finfo(np.float32).max  # finite values whose sum is infinite
    Processor(spec).postprocess(classes, masks, geometry)
    masks = masks.astype(np.float64)
    masks[0, 0, 0, 0] = 1e300
    with pytest.raises(VerificationError):
        Processor(spec).postprocess(classes, masks, geometry)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, (1 << 14) - 1, (1 << 14) + 5, (1 << 23) + 3])
def test_every_value_of_any_array_is_checked(size):
    values = np.zeros(size, np.float32)
    assert not pixels.any_not_finite(values)
    for place in {0, size // 3, size // 2, size - 1} if size else ():
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            values[place] = value
            assert pixels.any_not_finite(values, threads=2)
            assert not pixels.any_not_finite(values[:place])
        values[place] = 0


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": (0, 77)},
        {"image_size": (99, -1)},
        {"image_size": (1 << 40, 77)},
        {"scaled_size": (0, 64)},
        {"axis": 2},
        {"windows": ((-1, 63), (0, 64))},
        {"windows": ((0, 64), (30, 94))},
        {"windows": ((0, 64), (64, 10))},
        {"windows": ((0, 30), (18, 82))},
        {"windows": (), "scaled_size": (64, 65)},
    ],
)
def test_geometries_that_contradict_themselves(change):
    spec = make_spec("semantic")
    geometry = plan((99, 77), (64, 64), "windows")
    assert len(geometry.windows) == 2
    classes, masks = make_logits(3, (2, 16, 16))
    Processor(spec).postprocess(classes, masks, geometry)
    geometry = replace(geometry, **change)
    count = geometry.num_inputs
    with pytest.raises(UsageError, match="geometry is inconsistent"):
        Processor(spec).postprocess(classes[:count], masks[:count], geometry)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(30, 90, 3), (90, 30, 3), (64, 64, 3), (7, 5, 3), (301, 299, 3)])
def test_shapes_of_a_round_trip(task, shape):
    processor = Processor(make_spec(task))
    images, geometry = processor.preprocess(np.full(shape, 99, np.uint8))
    assert images.shape == (geometry.num_inputs, 64, 64, 3)
    classes, masks = make_logits(1, (len(images), 16, 16))
    result = processor.postprocess(classes, masks, geometry)
    assert result.task == task
    assert result.size == shape[:2]
    if task == "panoptic":
        areas = [int((result.segment_map == s.id).sum()) for s in result.segments]
        assert [s.area for s in result.segments] == areas
        assert {s.id for s in result.segments} == set(np.unique(result.segment_map)) - {-1}


def test_letterbox_pads_right_and_bottom_with_zero():
    images, _ = Processor(make_spec("panoptic")).preprocess(np.full((30, 60, 3), 200, np.uint8))
    assert (images[0, :32] == 200).all()
    assert (images[0, 32:] == 0).all()


def test_thresholds_belong_to_tasks():
    processor = Processor(make_spec("panoptic"))
    assert processor.thresholds(score=0.5) == Thresholds(0.5, 0.5, 0.8)
    with pytest.raises(UsageError, match=r"must be between 0 and 1, got 1\.5"):
        processor.thresholds(mask=1.5)
    with pytest.raises(UsageError, match=r"overlap threshold does not apply(.|\n)*score"):
        Processor(make_spec("instance")).thresholds(overlap=0.5)
    with pytest.raises(UsageError, match="none"):
        Processor(make_spec("semantic")).thresholds(score=0.5)


def test_outputs_of_another_model_are_refused():
    processor = Processor(make_spec("panoptic"))
    _, geometry = processor.preprocess(np.zeros((30, 60, 3), np.uint8))
    classes, masks = make_logits(1, (1, 16, 16), queries=5)
    with pytest.raises(UsageError, match="do not belong to panoptic"):
        processor.postprocess(classes, masks, geometry)
