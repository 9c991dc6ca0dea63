"""CudaProcessor compared with Processor: kernels compiled as C++, and on a GPU if there is one."""

from __future__ import annotations

import json
from dataclasses import replace

import literal
import numpy as np
import pytest
from cuda_place import Place, make_logits, make_spec
from host_twin import HostDevice, gpu_device, put, twin
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eomt_deploy.errors import ImageError, UsageError, VerificationError
from eomt_deploy.processing import Processor
from eomt_deploy.processing.cuda.instance import FIRST_RUNS
from eomt_deploy.processing.geometry import Geometry, plan
from eomt_deploy.spec import TASKS, Thresholds

TIE = 2e-4
"""Rounding may exchange classes whose scores differ by less than this, relative to the best."""


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, tmp_path_factory) -> Place:
    if request.param == "gpu":
        return Place(gpu_device())
    return Place(HostDevice(tmp_path_factory.mktemp("modules")), twin())


any_task = st.sampled_from(TASKS)
sizes = st.sampled_from([(64, 64), (48, 96), (96, 48)])
images = st.tuples(st.integers(20, 300), st.integers(20, 300))
dtypes = st.sampled_from([np.float32, np.float16])
seeds = st.integers(0, 10_000)


# ---- image to network input --------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(task=any_task, size=sizes, image=images, seed=seeds, order=st.sampled_from(["rgb", "bgr"]))
@example(task="panoptic", size=(64, 64), image=(64, 64), seed=0, order="bgr")
@example(task="semantic", size=(64, 64), image=(64, 300), seed=0, order="bgr")
@example(task="instance", size=(96, 48), image=(299, 41), seed=0, order="rgb")
def test_inputs_are_the_same_to_the_bit(place, task, size, image, seed, order):
    spec = make_spec(task, size)
    pixels = np.random.default_rng(seed).integers(0, 256, (*image, 3), np.uint8)
    rgb = pixels if order == "rgb" else pixels[..., ::-1]
    wanted, geometry = Processor(spec).preprocess(rgb)
    processor = place.processor(spec)
    for source in (pixels, put(place.device, pixels)):
        found, at = processor.preprocess(source, color_order=order)
        assert at == geometry
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found.copy_to_host(), wanted)


def test_inputs_of_a_file(place, image_path):
    spec = make_spec("panoptic", (640, 640))
    wanted, _ = Processor(spec).preprocess(image_path)
    found, _ = place.processor(spec).preprocess(image_path)
    np.testing.assert_array_equal(found.copy_to_host(), wanted)


def test_inputs_are_written_where_they_are_wanted(place, image_path):
    spec = make_spec("panoptic")
    processor = place.processor(spec)
    wanted, _ = Processor(spec).preprocess(image_path)
    batch = put(place.device, np.full((3, 64, 64, 3), 9, np.uint8))
    found, _ = processor.preprocess(image_path, into=batch.rows(1, 2))
    assert found.pointer == batch.rows(1, 2).pointer
    place.device.synchronize(place.stream)
    filled = batch.copy_to_host()
    np.testing.assert_array_equal(filled[1:2], wanted)
    assert (filled[[0, 2]] == 9).all()
    with pytest.raises(UsageError, match=r"uint8 \[1, 64, 64, 3\] .*, got uint8 \[3, 64"):
        processor.preprocess(image_path, into=batch)


def test_images_that_are_none(place):
    processor = place.processor(make_spec("panoptic"))
    for shape, dtype in (((9, 9), np.uint8), ((9, 9, 4), np.uint8), ((9, 9, 3), np.float32)):
        with pytest.raises(ImageError, match=r"must be uint8 \[H, W, 3\], got"):
            processor.preprocess(put(place.device, np.zeros(shape, dtype)))
    with pytest.raises(ImageError, match="empty"):
        processor.preprocess(put(place.device, np.zeros((0, 9, 3), np.uint8)))
    with pytest.raises(ImageError, match="shrinks to 0x64"):
        processor.preprocess(np.zeros((1, 900, 3), np.uint8))
    with pytest.raises(UsageError, match="color_order"):
        processor.preprocess(put(place.device, np.zeros((9, 9, 3), np.uint8)), color_order="gbr")


# ---- network output to result ------------------------------------------------------------------


def check(place, spec, classes, masks, geometry, thresholds=None):
    """Check that the GPU path gives the result of the CPU path."""
    thresholds = thresholds or spec.thresholds
    wanted = Processor(spec).postprocess_with(classes, masks, geometry, thresholds)
    found = place.postprocess(spec, classes, masks, geometry, thresholds)
    if spec.task == "semantic":
        check_semantic(wanted, found, classes, masks, geometry)
        return
    assert described(found) == described(wanted)
    if spec.task == "panoptic":
        np.testing.assert_array_equal(found.segment_map, wanted.segment_map)
    for mine, other in zip(found.segments, wanted.segments, strict=True):
        np.testing.assert_array_equal(mine.mask, other.mask)


def described(result):
    return [(s.id, s.class_id, s.score, s.area, s.box) for s in result.segments]


def check_semantic(wanted, found, classes, masks, geometry):
    """Class scores are sums in another order, so that equal scores may change places."""
    assert found.labels.dtype == wanted.labels.dtype
    best = np.sort(literal.class_scores(classes, masks, geometry).numpy(), axis=0)
    decided = best[-1] - best[:-1].max(axis=0, initial=0) > TIE * best[-1]
    assert (found.labels == wanted.labels)[decided].all()
    assert decided.mean() > 0.5


@settings(deadline=None, max_examples=60)
@given(
    size=sizes,
    image=images,
    seed=seeds,
    dtype=dtypes,
    thresholds=st.builds(
        Thresholds,
        score=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
        mask=st.sampled_from([0.3, 0.5]),
        overlap=st.sampled_from([0.0, 0.5, 0.8]),
    ),
)
def test_panoptic(place, size, image, seed, dtype, thresholds):
    spec = make_spec("panoptic", size)
    classes, masks = make_logits(spec, 1, seed, dtype)
    check(place, spec, classes, masks, plan(image, size, "letterbox"), thresholds)


@settings(deadline=None, max_examples=40)
@given(size=sizes, image=images, seed=seeds, dtype=dtypes, score=st.sampled_from([0.0, 0.4, 1.0]))
def test_instances(place, size, image, seed, dtype, score):
    spec = make_spec("instance", size, queries=30)
    classes, masks = make_logits(spec, 1, seed, dtype)
    check(place, spec, classes, masks, plan(image, size, "letterbox"), Thresholds(score=score))


@settings(deadline=None, max_examples=25)
@given(
    size=sizes,
    image=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    seed=seeds,
    dtype=dtypes,
    number=st.sampled_from([2, 32, 33, 161]),
)
def test_semantic(place, size, image, seed, dtype, number):
    spec = make_spec("semantic", size, classes=number)
    geometry = plan(image, size, "windows")
    classes, masks = make_logits(spec, geometry.num_inputs, seed, dtype)
    check(place, spec, classes, masks, geometry)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_usual_size(place, task):
    spec = make_spec(task, (640, 640), queries=20)
    geometry = plan((427, 640), (640, 640), "letterbox")
    check(place, spec, *make_logits(spec, 1, 8, np.float16), geometry)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("queries", "classes"), [(300, 3), (257, 300), (1, 1)])
def test_more_queries_or_classes_than_a_block_has_threads(place, task, queries, classes):
    spec = make_spec(task, queries=queries, classes=classes)
    geometry = plan((75, 99), (64, 64), spec.resize)
    logits, masks = make_logits(spec, geometry.num_inputs, 4)
    logits[..., -1] -= 5
    check(place, spec, logits, masks, geometry, Thresholds(0.1, 0.5, 0.1))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_logits_without_a_pattern(place, task):
    """Each row has many runs, which do not all fit into the first copy."""
    spec = make_spec(task, queries=50)
    geometry = plan((600, 450), (64, 64), "letterbox")
    rng = np.random.default_rng(0)
    classes = rng.normal(size=(1, 50, 6), scale=3).astype(np.float32)
    masks = rng.normal(size=(1, 50, *spec.mask_size), scale=20).astype(np.float32)
    if task == "instance":
        runs = np.diff(literal.at_image(masks[0], geometry).numpy() > 0, axis=-1).sum() / 2
        assert runs > FIRST_RUNS
    check(place, spec, classes, masks, geometry, Thresholds(0.0, 0.5, 0.0))


def test_queries_that_are_left_out_at_first_are_added_where_they_matter(place):
    """Class 1 has a slightly weaker query than class 2, and 198 others that matter together."""
    spec = make_spec("semantic", queries=200, classes=3)
    geometry = plan((64, 70), (64, 64), "windows")
    classes = np.full((geometry.num_inputs, 200, 4), -30, np.float32)
    classes[..., 1] = 9
    classes[:, 1] = [-30, -30, 9, -30]
    masks = np.full((geometry.num_inputs, 200, *spec.mask_size), -11.4, np.float32)
    masks[:, 0] = 6.907  # probability 0.9990
    masks[:, 1] = 7.600  # probability 0.9995
    check(place, spec, classes, masks, geometry)
    assert (place.postprocess(spec, classes, masks, geometry).class_map == 1).all()
    masks[:, 2:] = -30
    assert (place.postprocess(spec, classes, masks, geometry).class_map == 2).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("order", [255, 97])
def test_the_order_of_threads_does_not_matter(tmp_path, task, order):
    """A missing barrier in a kernel shows as another result, if threads run in another order."""
    spec = make_spec(task, queries=70, classes=40)
    geometry = plan((95, 70), (64, 64), spec.resize)
    logits = make_logits(spec, geometry.num_inputs, 2)
    device = HostDevice(tmp_path)
    place = Place(device, twin())
    first = place.postprocess(spec, *logits, geometry, Thresholds(0.1, 0.5, 0.1))
    device.set_order(order)
    second = place.postprocess(spec, *logits, geometry, Thresholds(0.1, 0.5, 0.1))
    assert described(first) == described(second)
    if task != "instance":
        np.testing.assert_array_equal(first.labels, second.labels)


def test_images_larger_and_smaller_than_the_windows(place):
    spec = make_spec("semantic", classes=4)
    for image in ((9, 11), (640, 900), (64, 65), (33, 90)):
        geometry = plan(image, (64, 64), "windows")
        check(place, spec, *make_logits(spec, geometry.num_inputs, 6), geometry)


def blocks(*rows):
    """Mask logits [64, 64] in blocks of the given values."""
    values = np.array(rows, np.float32)
    return np.kron(values, np.ones((64 // len(values), 64 // len(values)), np.float32))


ON, WEAK, OFF, NEVER = 4.0, -0.5, -6.0, -200.0


@pytest.mark.parametrize(
    ("masks", "kinds", "kept"),
    [
        # Equal queries: the first wins every pixel.
        ([[[ON, ON], [OFF, OFF]], [[ON, ON], [OFF, OFF]]], [2, 3], [2]),
        # The second wins only where its own mask is off, so it is not a segment.
        ([[[ON, ON], [NEVER, NEVER]], [[1, 1], [WEAK, WEAK]]], [2, 3], [2]),
        # The first loses its own mask but wins pixels outside all masks, which count as won.
        ([[[1] * 4, *[[NEVER] * 4] * 3], [[ON, ON, ON, OFF], *[[NEVER] * 4] * 3]], [2, 3], [2, 3]),
        # Two segments of the same stuff class are merged.
        ([[[ON, OFF], [OFF, OFF]], [[OFF, OFF], [OFF, ON]]], [1, 1], [1]),
    ],
)
def test_panoptic_of_made_up_masks(place, masks, kinds, kept):
    spec = replace(make_spec("panoptic", queries=len(kinds)), num_upscale=4)  # masks of full size
    geometry = Geometry((64, 64), (64, 64), (64, 64))
    logits = np.stack([blocks(*mask) for mask in masks])[None]
    classes = np.zeros((1, len(kinds), 6), np.float32)
    classes[0, np.arange(len(kinds)), kinds] = 20
    thresholds = Thresholds(0.5, 0.5, 0.8)
    wanted = Processor(spec).postprocess_with(classes, logits, geometry, thresholds)
    found = place.postprocess(spec, classes, logits, geometry, thresholds)
    assert [s.class_id for s in wanted.segments] == kept
    assert [s.class_id for s in found.segments] == kept
    np.testing.assert_array_equal(found.segment_map, wanted.segment_map)


def test_the_first_of_equal_classes_wins(place):
    spec = make_spec("semantic", classes=40)
    classes, masks = make_logits(spec, 1, 3)
    classes[..., 38] = classes[..., 7] = classes[..., 20] = 9
    geometry = plan((64, 64), (64, 64), "windows")
    found = np.unique(place.postprocess(spec, classes, masks, geometry).class_map).tolist()
    assert 7 in found
    assert 20 not in found
    assert 38 not in found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("task", TASKS)
def test_logits_that_are_no_numbers_are_refused(place, task, dtype, value):
    spec = make_spec(task)
    geometry = plan((99, 77), (64, 64), spec.resize)
    arrays = make_logits(spec, geometry.num_inputs, 3, dtype)
    arrays[0][:, 1:, -1] = 99  # only the first query sees an object
    processor = place.processor(spec)
    processor.postprocess(*(put(place.device, array) for array in arrays), geometry)
    for which, array in enumerate(arrays):
        for position in (0, array.size // 2, array.size - 1):
            changed = [array.copy() for array in arrays]
            changed[which].flat[position] = value
            on_device = [put(place.device, array) for array in changed]
            with pytest.raises(VerificationError) as error:
                processor.postprocess(*on_device, geometry, image="street.jpg")
            assert error.value.what == f"{task} (fp32) gives NaN or infinite logits on street.jpg."
    processor.postprocess(*(put(place.device, array) for array in arrays), geometry)


def test_outputs_of_another_model_are_refused(place):
    spec = make_spec("panoptic")
    processor = place.processor(spec)
    geometry = plan((50, 60), (64, 64), "letterbox")
    classes, masks = make_logits(spec, 1, 3)
    on_device = put(place.device, classes), put(place.device, masks)
    with pytest.raises(UsageError, match="do not belong to panoptic"):
        processor.postprocess(on_device[0], on_device[0], geometry)
    with pytest.raises(UsageError, match="float16 or float32, got float64"):
        processor.postprocess(on_device[0], put(place.device, masks.astype(float)), geometry)
    with pytest.raises(UsageError, match="not an array in GPU memory"):
        processor.postprocess(classes, masks, geometry)
    with pytest.raises(UsageError, match="must be between 0 and 1"):
        processor.postprocess(*on_device, geometry, score_threshold=2)


# ---- the official code's own logits ------------------------------------------------------------

CASES = {"semantic": "semantic_64", "panoptic": "panoptic_96", "instance": "instance_96"}


@pytest.mark.shared_data
@pytest.mark.parametrize("task", TASKS)
def test_official_logits(place, shared, task):
    folder = shared / "golden" / CASES[task]
    manifest = json.loads((folder / "manifest.json").read_text())
    with np.load(folder / "outputs.npz") as data:
        outputs = dict(data)
    spec = make_spec(task, tuple(manifest["img_size"]), 20, len(manifest["class_names"]))
    start = 0
    for name in "abcde":
        path = shared / f"golden/images/{name}.png"
        inputs, geometry = place.processor(spec).preprocess(path)
        own = slice(start, start + len(inputs))
        start += len(inputs)
        wanted = outputs["transformed"][own].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(inputs.copy_to_host(), wanted)
        logits = outputs["class_logits"][own], outputs["mask_logits"][own]
        check(place, spec, *logits, geometry)
