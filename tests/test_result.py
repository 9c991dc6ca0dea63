from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.masks import encode_mask
from eomt_deploy.pixel_labels import label_type
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment

CLASSES = make_classes(
    [{"name": n, "thing": t} for n, t in (("sky", False), ("cat", True), ("dog", True))], "test"
)


def segment(index: int, class_id: int, mask: np.ndarray, score: float = 0.9) -> Segment:
    return Segment.from_rle(index, CLASSES[class_id], score, encode_mask(mask))


@pytest.fixture
def semantic(gradient) -> Segmentation:
    labels = np.zeros((37, 53), np.uint8)
    labels[10:20, 5:50] = 2
    return Segmentation("semantic", (37, 53), CLASSES, labels=labels, image=gradient)


@pytest.fixture
def panoptic(gradient) -> Segmentation:
    labels = np.zeros((37, 53), np.uint8)
    labels[:20] = 1
    labels[25:30, 10:40] = 2
    segments = tuple(segment(i, c, labels == i + 1) for i, c in enumerate((0, 1)))
    return Segmentation(
        "panoptic", (37, 53), CLASSES, labels=labels, segments=segments, image=gradient
    )


@pytest.fixture
def instance(gradient) -> Segmentation:
    first, second = np.zeros((2, 37, 53), bool)
    first[5:20, 5:20] = second[10:30, 10:30] = True
    segments = (segment(0, 1, first, 0.9), segment(1, 2, second, 0.2))
    return Segmentation("instance", (37, 53), CLASSES, segments=segments, image=gradient)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_segment_holds_its_mask_exactly(mask):
    item = segment(0, 1, mask)
    assert (item.mask == mask).all()
    assert item.area == mask.sum()
    if mask.any():
        ys, xs = np.nonzero(mask)
        assert item.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    else:
        assert item.box == (0, 0, 0, 0)


def test_coco_annotations_are_json_and_decode(panoptic):
    annotations = json.loads(json.dumps(panoptic.to_coco(image_id=7)))
    assert [a["category_id"] for a in annotations] == [0, 1]
    assert {a["image_id"] for a in annotations} == {7}
    cat = annotations[1]
    assert cat["bbox"] == [10, 25, 30, 5]
    assert (coco_mask.decode(cat["segmentation"]) == panoptic.segments[1].mask).all()


def test_semantic_regions_cover_the_image(semantic):
    assert [r.class_name for r in semantic.regions()] == ["sky", "dog"]
    assert sum(a["area"] for a in semantic.to_coco()) == 37 * 53


def test_panoptic_picture_follows_the_coco_format(panoptic):
    picture, info = panoptic.to_panoptic()
    ids = np.asarray(picture).astype(int) @ [1, 256, 65536]
    assert [i["id"] for i in info] == [1, 2]
    assert (ids == panoptic.segment_map + 1).all()
    assert [i["area"] for i in info] == [int((ids == i["id"]).sum()) for i in info]


def test_panoptic_picture_holds_more_than_256_segments():
    labels = np.arange(300, dtype=np.uint16).reshape(10, 30)
    result = Segmentation("panoptic", (10, 30), CLASSES, labels=labels)
    ids = np.asarray(result.to_panoptic()[0]).astype(int) @ [1, 256, 65536]
    assert (ids == labels).all()


def test_other_tasks_have_no_panoptic_picture(semantic, instance):
    for result in (semantic, instance):
        with pytest.raises(UsageError, match="needs a panoptic result"):
            result.to_panoptic()


def test_supervision(instance, semantic):
    pytest.importorskip("supervision")
    detections = instance.to_supervision()
    assert detections.class_id.tolist() == [1, 2]
    assert (detections.mask[0] == instance.segments[0].mask).all()
    assert list(semantic.to_supervision().data["class_name"]) == ["sky", "dog"]
    empty = Segmentation("instance", (37, 53), CLASSES)
    assert len(empty.to_supervision()) == 0


def test_label_image(semantic, instance, panoptic):
    labels = semantic.label_image()
    assert labels.mode == "L"
    assert (np.asarray(labels) == semantic.class_map).all()
    assert panoptic.label_image().mode == "RGB"
    with pytest.raises(UsageError):
        instance.label_image()


def test_overlay_paints_segments_and_nothing_else(panoptic, gradient):
    plain = np.asarray(panoptic.overlay(alpha=0.5, labels=False, outlines=False))
    void = panoptic.segment_map == -1
    assert (plain[void] == gradient[void]).all()
    assert np.abs(plain.astype(int) - gradient)[~void].mean() > 8


def test_overlay_leaves_out_unlikely_instances(instance):
    likely, all_of_them = instance.overlay(), instance.overlay(min_score=0)
    assert np.asarray(likely).tobytes() != np.asarray(all_of_them).tobytes()
    only_first = Segmentation(
        "instance", (37, 53), CLASSES, segments=instance.segments[:1], image=instance.image
    )
    assert np.asarray(likely).tobytes() == np.asarray(only_first.overlay()).tobytes()


def test_overlay_does_not_touch_the_image(semantic, gradient):
    before = gradient.copy()
    semantic.overlay()
    assert (gradient == before).all()


def test_overlay_needs_an_image_of_the_right_size(gradient):
    result = Segmentation("instance", (37, 53), CLASSES)
    with pytest.raises(UsageError, match="overlay needs the image"):
        result.overlay()
    with pytest.raises(UsageError, match="The image must have shape"):
        result.overlay(gradient[:10])
    assert result._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".json", ".npz"])
@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_save(task, suffix, tmp_path, request):
    result = request.getfixturevalue(task)
    path = tmp_path / f"result{suffix}"
    result.save(path)
    if suffix == ".json":
        assert len(json.loads(path.read_text())["annotations"]) == len(result.regions())
    elif suffix == ".npz":
        with np.load(path) as data:
            key = "class_map" if task == "semantic" else "boxes"
            assert len(data[key]) == (37 if task == "semantic" else len(result.segments))
    else:
        Image.open(path).verify()
    assert list(tmp_path.iterdir()) == [path]


def test_save_elsewhere(semantic, tmp_path):
    with pytest.raises(UsageError, match=r"\.tiff"):
        semantic.save(tmp_path / "x.tiff")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        semantic.save(tmp_path / "file" / "x.json")


def test_maps_are_widened(semantic, panoptic, instance):
    assert semantic.class_map.dtype == panoptic.segment_map.dtype == np.int32
    assert (semantic.class_map == semantic.labels).all()
    assert np.unique(panoptic.segment_map).tolist() == [-1, 0, 1]
    assert semantic.segment_map is panoptic.class_map is instance.class_map is None
    for count, kind in ((255, np.uint8), (256, np.uint8), (257, np.uint16)):
        assert label_type(count) is kind


def test_results_check_themselves(gradient):
    size = (37, 53)
    good = np.zeros(size, np.uint8)
    for wrong in (
        {"task": "semantic"},
        {"task": "instance", "labels": good},
        {"task": "semantic", "labels": good.T},
        {"task": "semantic", "labels": good.astype(np.int32)},
        {"task": "instance", "image": gradient[:3]},
    ):
        with pytest.raises(ValueError, match=r"must|labels"):
            Segmentation(size=size, classes=CLASSES, **wrong)
