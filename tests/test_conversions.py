"""Results as sequences, and their conversions to other formats."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from eomt_deploy.classes import make_classes
from eomt_deploy.conversions import polygons_of
from eomt_deploy.errors import UsageError
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment

SIZE = (24, 30)
CLASSES = make_classes(
    [{"name": name, "thing": name in ("car", "dog")} for name in ("sky", "car", "road", "dog")],
    "test",
)


def result_of(task: str, image: np.ndarray | None = None) -> Segmentation:
    """Four regions: sky, car, road and dog; the dog is a ring with a hole."""
    masks = np.zeros((4, *SIZE), bool)
    masks[0, :6] = True
    masks[1, 8:14, 2:9] = True
    masks[2, 20:] = True
    masks[3, 8:18, 14:26] = True
    masks[3, 11:14, 18:22] = False
    if task == "semantic":
        labels = np.full(SIZE, 2, np.uint8)
        for class_id, mask in enumerate(masks):
            labels[mask] = class_id
        return Segmentation("semantic", SIZE, CLASSES, labels=labels, image=image)
    scores = (0.9, 0.8, 0.7, 0.6)
    if task == "instance":
        segments = [
            Segment.from_mask(i, CLASSES[i], score, mask)
            for i, (score, mask) in enumerate(zip(scores, masks, strict=True))
        ]
        return Segmentation("instance", SIZE, CLASSES, segments=tuple(segments), image=image)
    labels = np.zeros(SIZE, np.uint8)
    segments = []
    for i, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        labels[mask] = i + 1
        whole = Segment.from_mask(i, CLASSES[i], score, mask)
        segments.append(Segment.from_map(i, CLASSES[i], score, labels, whole.area, whole.box))
    return Segmentation(
        "panoptic", SIZE, CLASSES, labels=labels, segments=tuple(segments), image=image
    )


TASKS = ("semantic", "instance", "panoptic")


@pytest.mark.parametrize("task", TASKS)
def test_a_result_is_a_sequence_of_regions(task):
    result = result_of(task)
    assert len(result) == 4
    assert result
    assert [segment.class_name for segment in result] == result.class_names
    assert result[0].class_name == "sky"
    assert result[-1].class_name == "dog"
    assert result.class_ids.tolist() == [0, 1, 2, 3]
    assert result.masks.shape == (4, *SIZE)
    assert result.masks.sum(axis=(1, 2)).tolist() == result.areas.tolist()
    assert result.boxes[1].tolist() == [2, 8, 9, 14]
    assert result.scores.dtype == np.float32
    for which in (slice(1, 3), [1, 2], np.array([False, True, True, False]), np.array([1, 2])):
        assert result[which].class_names == ["car", "road"]
    with pytest.raises(IndexError):
        result[4]


@pytest.mark.parametrize("task", TASKS)
def test_filter(task):
    result = result_of(task)
    assert result.filter().class_names == result.class_names
    assert result.filter(classes=["car", 3]).class_names == ["car", "dog"]
    assert result.filter(classes="road").class_names == ["road"]
    assert result.filter(things_only=True).class_names == ["car", "dog"]
    assert result.filter(min_area=43).class_names == ["sky", "road", "dog"]
    if task != "semantic":
        assert result.filter(min_score=0.75).class_names == ["sky", "car"]
    nothing = result.filter(min_area=10**6)
    assert len(nothing) == 0
    assert nothing
    assert nothing.masks.shape == (0, *SIZE)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.to_coco() == []
    assert repr(nothing).endswith("0 segments)" if task != "semantic" else "0 classes)")
    with pytest.raises(UsageError, match="no class 'cart'") as error:
        result.filter(classes=["cart"])
    assert "car" in error.value.fix
    with pytest.raises(UsageError, match="no class 9"):
        result.filter(classes=9)


def test_filtered_maps():
    panoptic = result_of("panoptic")
    kept = panoptic.filter(classes=["road"])
    assert kept[0].id == 2
    assert np.unique(kept.segment_map).tolist() == [-1, 2]
    assert (kept.segment_map == 2).sum() == kept[0].mask.sum() == kept[0].area
    assert panoptic.segment_map.max() == 3  # unchanged
    image, info = kept.to_panoptic()
    assert [i["id"] for i in info] == [3]
    assert set(np.unique(np.asarray(image)[..., 0])) == {0, 3}
    semantic = result_of("semantic").filter(classes=["car"])
    assert np.unique(semantic.class_map).tolist() == [-1, 1]
    assert np.unique(np.asarray(semantic.label_image())).tolist() == [1, 255]
    assert semantic.filter(classes=["sky"]).class_names == []


@pytest.mark.parametrize("task", TASKS)
def test_filtered_results_are_drawn_and_saved(task, tmp_path):
    image = np.full((*SIZE, 3), 90, np.uint8)
    result = result_of(task, image).filter(classes=["dog"])
    for name in ("a.png", "a.json", "a.npz"):
        result.save(tmp_path / name)
    content = json.loads((tmp_path / "a.json").read_text())
    assert [a["category_name"] for a in content["annotations"]] == ["dog"]
    crop = result[0].crop(image)
    assert (crop.mode, crop.size) == ("RGBA", (12, 10))
    assert np.asarray(crop)[4, 5].tolist() == [90, 90, 90, 0]  # in the hole
    assert result[0].crop(image, transparent=False).mode == "RGB"


def filled(parts, size):
    """The mask of polygons: the pixels of all rings belong to it."""
    mask = np.zeros(size, np.uint8)
    for outer, *holes in parts:
        cv2.fillPoly(mask, [outer], 1)
        for hole in holes:
            inner = np.zeros(size, np.uint8)
            cv2.fillPoly(inner, [hole], 1)
            cv2.polylines(inner, [hole], True, 0)
            mask[inner == 1] = 0
    return mask.astype(bool)


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_of_blocks_are_exact(blocks):
    mask = np.kron(blocks, np.ones((4, 5), bool))
    parts = polygons_of(mask, 0)
    assert (filled(parts, mask.shape) == mask).all()
    assert all(ring.dtype == np.int32 and ring.shape[1] == 2 for part in parts for ring in part)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), tolerance=st.sampled_from([0.0, 1.0]))
def test_polygons_of_smooth_masks(seed, tolerance):
    coarse = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    mask = cv2.resize(coarse, (120, 100), interpolation=cv2.INTER_CUBIC) > 0.3
    if not mask.any():
        return
    again = filled(polygons_of(mask, tolerance), mask.shape)
    overlap = (again & mask).sum() / (again | mask).sum()
    assert overlap > (0.99 if tolerance == 0 else 0.85)


@pytest.mark.parametrize("task", TASKS)
def test_supervision_masks_are_compact_and_the_same(task):
    result = result_of(task)
    detections = result.to_supervision()
    assert isinstance(detections.mask, supervision.CompactMask)
    assert (detections.mask.to_dense() == result.masks).all()
    assert (detections.area == result.areas).all()
    assert len(detections[detections.class_id == 3]) == 1
    seen = supervision.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), detections)
    assert seen.any()


def test_dict_and_geojson():
    result = result_of("instance")
    content = json.loads(result.to_json())
    assert content == result.to_dict()
    dog = content["segments"][3]
    assert (dog["class_name"], dog["thing"], dog["box"]) == ("dog", True, [14, 8, 26, 18])
    ((outer, hole),) = dog["polygons"]
    assert [14, 8] in outer
    assert len(hole) >= 4
    collection = json.loads(json.dumps(result.to_geojson()))
    geometry = collection["features"][3]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert all(ring[0] == ring[-1] for part in geometry["coordinates"] for ring in part)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_dict_with_exact_masks(task):
    result = result_of(task)
    content = json.loads(result.to_json(masks="rle"))
    assert content == result.to_dict(masks="rle")
    for segment, found in zip(result.regions(), content["segments"], strict=True):
        assert "polygons" not in found
        rle = found["rle"]
        assert rle["size"] == list(SIZE)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), segment.mask)


def test_dict_with_an_unknown_format_of_masks():
    with pytest.raises(UsageError, match="got 'png'"):
        result_of("semantic").to_dict(masks="png")


def test_labelme_and_cvat():
    result = result_of("panoptic")
    content = result.to_labelme("street.jpg")
    assert [shape["label"] for shape in content["shapes"]] == ["sky", "car", "road", "dog"]
    assert [shape["group_id"] for shape in content["shapes"]] == [None, 1, None, 3]
    assert (content["imagePath"], content["imageHeight"]) == ("street.jpg", 24)
    image = ElementTree.fromstring(result.to_cvat("street <1>.jpg")).find("image")
    assert image.get("name") == "street <1>.jpg"
    for mask, segment in zip(image.findall("mask"), result, strict=True):
        width, height = int(mask.get("width")), int(mask.get("height"))
        lengths = [int(part) for part in mask.get("rle").split(", ")]
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
        x0, y0 = int(mask.get("left")), int(mask.get("top"))
        assert (inside == segment.mask[y0 : y0 + height, x0 : x0 + width]).all()


def test_pandas():
    pytest.importorskip("pandas")
    table = result_of("panoptic").to_pandas()
    assert table["class_name"].tolist() == ["sky", "car", "road", "dog"]
    assert table.loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [2, 8, 9, 14]
    assert len(result_of("panoptic").filter(min_area=10**6).to_pandas().columns) == 10
