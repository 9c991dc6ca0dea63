from __future__ import annotations

import inspect
import sys
from dataclasses import fields

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from PIL import Image, ImageShow

from eomt_deploy.classes import make_classes
from eomt_deploy.drawing import OverlayStyle, draw_overlay, has_display, side_by_side
from eomt_deploy.drawing.colors import choose_colors
from eomt_deploy.drawing.overlay import text_size
from eomt_deploy.drawing.regions import areas_of, find_regions
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment

CLASSES = make_classes(
    [
        {"name": "sky-other-merged", "thing": False, "color": [70, 130, 180]},
        {"name": "cat", "thing": True, "color": [0, 60, 100]},
        {"name": "grass-merged", "thing": False, "color": [20, 200, 40]},
    ],
    "test",
)
PLAIN = OverlayStyle(labels=False, outlines=False)
GREY = 100


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def panoptic(labels: np.ndarray, class_ids: list[int], classes=CLASSES) -> Segmentation:
    segments = tuple(
        Segment.from_mask(index, classes[c], 0.9, labels == index + 1)
        for index, c in enumerate(class_ids)
    )
    image = grey(*labels.shape)
    return Segmentation("panoptic", labels.shape, classes, labels, segments, image)


def instances(masks: list[np.ndarray], scores: list[float]) -> Segmentation:
    segments = tuple(
        Segment.from_mask(index, CLASSES[1], score, mask)
        for index, (mask, score) in enumerate(zip(masks, scores, strict=True))
    )
    size = masks[0].shape
    return Segmentation("instance", size, CLASSES, None, segments, grey(*size))


def drawn(result: Segmentation, style: OverlayStyle) -> np.ndarray:
    assert result.image is not None
    return draw_overlay(result, result.image, style)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_are_mixed_with_the_colours_of_their_regions(dtype):
    labels = np.zeros((40, 60), dtype)
    labels[:10] = 1  # sky
    labels[20:30, 20:40] = 2  # cat
    result = panoptic(labels, [0, 1])
    _, cat = choose_colors([CLASSES[0].color, None], [0, 1], "classes")
    picture = drawn(result, OverlayStyle(alpha=0.25, labels=False, outlines=False)).astype(int)
    for part, color in ((labels == 1, (70, 130, 180)), (labels == 2, cat)):
        wanted = 0.75 * GREY + 0.25 * np.array(color)
        assert (np.abs(picture[part] - wanted) <= 1).all()
    assert (picture[labels == 0] == GREY).all()


def test_semantic_classes_keep_their_colours_and_void_keeps_the_image():
    labels = np.array([[0, 1], [2, 255]], np.uint8).repeat(20, 0).repeat(20, 1)
    result = Segmentation("semantic", (40, 40), CLASSES, labels, (), grey(40, 40))
    picture = drawn(result, OverlayStyle(alpha=1, labels=False, outlines=False))
    for number, info in enumerate(CLASSES):
        assert (picture[labels == number] == info.color).all()
    assert (picture[labels == 255] == GREY).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (240, 320), (300, 40)])
@pytest.mark.parametrize("boxes", [False, True])
def test_an_overlay_has_the_size_of_its_image(size, boxes):
    labels = np.ones(size, np.uint8)
    result = panoptic(labels, [1])
    assert result.overlay(boxes=boxes).size == (size[1], size[0])
    wider = result.overlay(legend=True)
    assert wider.height == size[0]
    assert wider.width > size[1]


def test_an_empty_result_leaves_the_image_as_it_is():
    empty = Segmentation("instance", (50, 60), CLASSES, None, (), grey(50, 60))
    assert (np.asarray(empty.overlay()) == GREY).all()
    assert empty.overlay(legend=True).width > 60


def test_the_image_is_not_changed_and_can_have_any_memory_order():
    labels = np.ones((40, 60), np.uint8)
    result = panoptic(labels, [1])
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    before = image.copy()
    wanted = draw_overlay(result, image, OverlayStyle())
    assert (image == before).all()
    flipped = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    assert (draw_overlay(result, flipped, OverlayStyle()) == wanted).all()


def test_a_small_region_has_a_light_and_a_dark_line_on_any_background():
    labels = np.zeros((50, 50), np.uint8)
    labels[20:30, 20:30] = 1
    for background in (0, 255):
        result = panoptic(labels, [1])
        image = np.full((50, 50, 3), background, np.uint8)
        picture = draw_overlay(result, image, OverlayStyle(alpha=0, labels=False)).astype(int)
        inner = np.zeros((50, 50), bool)
        inner[20:30, 20:30], inner[21:29, 21:29] = True, False
        outer = np.zeros((50, 50), bool)
        outer[19:31, 19:31], outer[20:30, 20:30] = True, False
        assert picture[inner].mean() - picture[outer].mean() > 80
        assert (picture[~inner & ~outer] == background).all()


def test_of_two_regions_the_thing_has_the_light_line():
    labels = np.full((40, 40), 1, np.uint8)
    labels[:, 20:] = 2
    picture = drawn(panoptic(labels, [2, 1]), OverlayStyle(alpha=0, labels=False)).astype(int)
    assert picture[20, 19].mean() < GREY < picture[20, 20].mean()
    assert (picture[:, :19] == GREY).all()


def test_there_is_a_thin_line_between_classes():
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 25:] = 2
    result = Segmentation("semantic", (40, 40), CLASSES, labels, (), grey(40, 40))
    changed = (drawn(result, OverlayStyle(alpha=0, labels=False)) != GREY).any(axis=(0, 2))
    assert np.flatnonzero(changed).tolist() == [25]  # in the smaller region


def test_masks_boxes_and_labels_can_be_switched_off():
    mask = np.zeros((120, 160), bool)
    mask[40:80, 50:110] = True
    mask[40:50, 50:60] = False  # not a rectangle
    result = instances([mask], [0.9])
    nothing = OverlayStyle(masks=False, outlines=False, labels=False)
    assert (drawn(result, nothing) == GREY).all()
    box = drawn(result, OverlayStyle(masks=False, outlines=False, labels=False, boxes=True))
    changed = (box != GREY).any(axis=-1)
    assert changed[40, 50:110].all()
    assert changed[79, 50:110].all()
    assert changed[40:80, 50].all()
    assert changed[40:80, 109].all()
    assert not changed[45:75, 55:105].any()
    for switched_on in ("masks", "outlines", "labels"):
        style = OverlayStyle(
            **{"masks": False, "outlines": False, "labels": False, switched_on: True}
        )
        assert (drawn(result, style) != GREY).any(), switched_on
    with_score = drawn(result, OverlayStyle())
    assert (with_score != drawn(result, OverlayStyle(scores=False))).any()


def test_a_smaller_instance_covers_a_larger_one():
    large, small = np.zeros((2, 60, 60), bool)
    large[10:50, 10:50] = True
    small[20:30, 20:30] = True
    for masks in ([large, small], [small, large]):
        labels, regions = find_regions(instances(masks, [0.9, 0.8]), OverlayStyle())
        assert [region.area for region in regions] == [1600, 100]
        assert (labels == regions[1].number).sum() == 100
        assert (labels == regions[0].number).sum() == 1500


@pytest.mark.parametrize(("minimum", "count"), [(None, 1), (0, 2), (0.95, 0)])
def test_the_minimum_score_of_instances(minimum, count):
    masks = np.zeros((2, 60, 60), bool)
    masks[0, :20], masks[1, 30:] = True, True
    result = instances(list(masks), [0.9, 0.2])
    assert len(find_regions(result, OverlayStyle(min_score=minimum))[1]) == count


def test_panoptic_segments_have_no_minimum_score_by_default():
    result = panoptic(np.ones((20, 20), np.uint8), [1])
    unlikely = Segment.from_mask(0, CLASSES[1], 0.3, result.segments[0].mask)
    result = Segmentation("panoptic", (20, 20), CLASSES, result.labels, (unlikely,), grey(20, 20))
    assert len(find_regions(result, OverlayStyle())[1]) == 1
    assert not find_regions(result, OverlayStyle(min_score=0.5))[1]


def test_areas():
    rng = np.random.default_rng(0)
    for dtype, high in ((np.uint8, 256), (np.uint16, 1000)):
        labels = rng.integers(0, high, (31, 17)).astype(dtype)
        values, counts = np.unique(labels, return_counts=True)
        assert (areas_of(labels)[values] == counts).all()
        assert areas_of(labels).sum() == labels.size


def test_more_than_255_segments():
    labels = (np.arange(300, dtype=np.uint16).reshape(10, 30) + 1).repeat(8, 0).repeat(8, 1)
    picture = drawn(panoptic(labels, [1] * 300), PLAIN)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 20  # all colours of instances
    drawn(panoptic(labels, [1] * 300), OverlayStyle(boxes=True, legend=True))


@pytest.mark.parametrize("name", ["", "猫", "Straße", "кошка", "a" * 100, "🐈", "قط"])
def test_any_class_name_can_be_drawn(name):
    classes = make_classes([{"name": name, "thing": True}], "test")
    result = panoptic(np.ones((200, 300), np.uint8), [0], classes)
    assert result.overlay(legend=True).height == 200


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from(["classes", "okabe-ito"]))
def test_random_results(seed, count, palette):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 150, 2).tolist()
    labels = rng.integers(0, count + 1, (-(-height // 7), -(-width // 7))).astype(np.uint8)
    labels = labels.repeat(7, 0).repeat(7, 1)[:height, :width]
    result = panoptic(labels, rng.integers(0, 3, count).tolist())
    style = OverlayStyle(boxes=True, palette=palette, font_scale=float(rng.uniform(0.25, 4)))
    picture = drawn(result, style)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_the_text_follows_the_size_of_the_image():
    sizes = [
        text_size(h, w, 1)
        for h, w in ((37, 53), (240, 320), (480, 640), (1080, 1920), (2160, 3840))
    ]
    assert sizes == [11, 11, 13, 23, 42]
    assert text_size(20_000, 20_000, 1) == 64
    assert text_size(480, 640, 2) == 26
    assert text_size(240, 320, 0.25) == 6


def test_overlay_has_the_fields_of_the_style():
    labels = np.zeros((100, 200), np.uint8)
    labels[10:90, 10:190] = 1
    labels[10:40, 10:40] = 0  # its outline is not its box
    result = panoptic(labels, [1])
    arguments = list(inspect.signature(Segmentation.overlay).parameters)[3:]
    assert arguments == [field.name for field in fields(OverlayStyle)]
    style = OverlayStyle(alpha=0.2, boxes=True)
    for changes in (
        {"alpha": 0.9}, {"masks": False}, {"outlines": False}, {"boxes": False},
        {"labels": False}, {"scores": False}, {"legend": True}, {"palette": "okabe-ito"},
        {"font_scale": 2}, {"min_score": 0.95},
    ):  # fmt: skip
        wanted = drawn(result, OverlayStyle(**({"alpha": 0.2, "boxes": True} | changes)))
        assert np.array_equal(np.asarray(result.overlay(None, style, **changes)), wanted)
        assert not np.array_equal(wanted, drawn(result, style)), changes


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -0.1}, {"alpha": 1.1}, {"alpha": float("nan")}, {"font_scale": 0},
        {"font_scale": 100}, {"min_score": 2}, {"palette": "pink"},
    ],
)  # fmt: skip
def test_wrong_options(wrong):
    result = panoptic(np.ones((20, 20), np.uint8), [1])
    with pytest.raises(UsageError) as caught:
        result.overlay(**wrong)
    assert str(next(iter(wrong.values()))) in caught.value.what
    assert caught.value.fix


def test_show(monkeypatch):
    seen = []
    result = panoptic(np.ones((20, 30), np.uint8), [1])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "show", lambda picture: seen.append(picture) or True)
    result.show(style=OverlayStyle(alpha=1))
    assert np.array_equal(np.asarray(seen[0]), np.asarray(result.overlay(alpha=1)))
    monkeypatch.setattr(ImageShow, "show", lambda picture: False)
    with pytest.raises(MissingDependencyError, match="No image viewer"):
        result.show()


def test_show_without_a_display(monkeypatch):
    """xdg-open fails there, but after Pillow has reported success."""
    assert has_display("win32", {})
    assert has_display("linux", {"WAYLAND_DISPLAY": "wayland-0"})
    assert not has_display("linux", {"DISPLAY": ""})
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(MissingDependencyError, match="no display") as caught:
        panoptic(np.ones((20, 30), np.uint8), [1]).show()
    assert "result.save" in caught.value.fix


def test_show_in_a_notebook(tmp_path):
    code = """
import numpy as np
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ClassInfo
labels = np.zeros((20, 30), np.uint8)
image = np.zeros((20, 30, 3), np.uint8)
classes = (ClassInfo(0, "sky", False, (9, 9, 9)),)
Segmentation("semantic", (20, 30), classes, labels, image=image).show()
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [o.data["image/png"][:4] for o in notebook.cells[0].outputs] == ["iVBO"]


def test_side_by_side():
    row = side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (5, 30), "blue")])
    assert row.size == (19, 30)
    assert row.getpixel((0, 0)) == (255, 0, 0)
    assert row.getpixel((14, 29)) == (0, 0, 255)
