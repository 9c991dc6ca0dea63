"""Comparison with inputs, logits and results of the official code."""

from __future__ import annotations

import json
from pathlib import Path

import c_library
import numpy as np
import pytest
import torch

from eomt_deploy.classes import make_classes
from eomt_deploy.processing import Processor
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.panoptic import segment_panoptic
from eomt_deploy.processing.pixels import softmax
from eomt_deploy.sources import load_image
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec, Thresholds

pytestmark = pytest.mark.shared_data
NAMES = "abcde"
CASES = {"semantic": "semantic_64", "panoptic": "panoptic_96", "instance": "instance_96"}


class Golden:
    """One official case: its processor, and the slice of the outputs for each image."""

    def __init__(self, shared: Path, task: str) -> None:
        folder = shared / "golden" / CASES[task]
        self.manifest = json.loads((folder / "manifest.json").read_text())
        with np.load(folder / "outputs.npz") as data:
            self.outputs = dict(data)
        stuff = self.manifest["stuff_classes"] or range(7)
        classes = make_classes(
            [{"name": n, "thing": i not in stuff}
             for i, n in enumerate(self.manifest["class_names"])],
            "manifest",
        )  # fmt: skip
        self.processor = Processor(
            ModelSpec(
                name=task,
                task=task,
                image_size=tuple(self.manifest["img_size"]),
                patch_size=16,
                num_queries=20,
                num_blocks=self.manifest["num_blocks"],
                num_upscale=2,
                classes=classes,
                resize=RESIZE_RULES[task],
                thresholds=TASK_THRESHOLDS[task],
                backbone=Backbone("dinov2", 64, 4, 2, "gelu", 4, 0),
            )
        )
        self.images = {key: shared / "golden/images" / f"{key}.png" for key in NAMES}
        self.slices = {}
        start = 0
        for key, path in self.images.items():
            count = len(self.processor.preprocess(path)[0])
            self.slices[key] = slice(start, start + count)
            start += count

    def result(self, key: str):
        own = self.slices[key]
        _, geometry = self.processor.preprocess(self.images[key])
        return self.processor.postprocess(
            self.outputs["class_logits"][own], self.outputs["mask_logits"][own], geometry
        )


@pytest.fixture(scope="module", params=CASES)
def golden(shared, request) -> Golden:
    return Golden(shared, request.param)


@pytest.mark.parametrize("key", NAMES)
def test_network_input_is_the_same_to_the_pixel(golden, key):
    images, _ = golden.processor.preprocess(golden.images[key])
    wanted = golden.outputs["transformed"][golden.slices[key]].transpose(0, 2, 3, 1)
    assert images.dtype == np.uint8
    assert (images == wanted).all()


@pytest.mark.parametrize("key", NAMES)
def test_semantic_labels(shared, key):
    golden = Golden(shared, "semantic")
    same = golden.result(key).class_map == golden.outputs[f"label_{key}"]
    assert same[~golden.outputs[f"neartie_{key}"]].all()
    assert same.mean() >= 0.999


@pytest.mark.parametrize("key", NAMES)
def test_panoptic_segments(shared, key):
    golden = Golden(shared, "panoptic")
    result = golden.result(key)
    assert (result.segment_map == golden.outputs[f"segment_{key}"]).mean() >= 0.999
    class_of = np.array([s.class_id for s in result.segments] + [7])
    assert (class_of[result.segment_map] == golden.outputs[f"class_{key}"]).mean() >= 0.999
    for segment, wanted in zip(result.segments, golden.manifest["segments"][key], strict=True):
        assert (segment.id, segment.class_id) == (wanted["id"], wanted["class_id"])
        assert segment.thing == wanted["is_thing"]
        assert segment.area == pytest.approx(wanted["area"], rel=1e-3)


@pytest.mark.parametrize("key", NAMES)
def test_instances(shared, key):
    golden = Golden(shared, "instance")
    result = golden.result(key)
    scores = golden.outputs[f"scores_{key}"]
    np.testing.assert_allclose([s.score for s in result.segments], scores, atol=1e-4)
    packed = golden.outputs[f"masks_packed_{key}"]
    height, width = result.size
    # Below this score, the order is noise (documented in the golden data).
    for index in np.flatnonzero(scores > 0.01):
        segment = result.segments[index]
        mask = np.unpackbits(packed[index])[: height * width].reshape(height, width)
        assert segment.class_id == golden.outputs[f"labels_{key}"][index]
        assert (segment.mask == mask).mean() >= 0.999


@pytest.mark.parametrize("key", NAMES)
def test_the_c_library_gives_the_same(golden, key):
    image = load_image(golden.images[key])
    inputs, _ = golden.processor.preprocess(image)
    model = c_library.read_model(golden.processor.spec)
    geometry = c_library.plan(model, *image.shape[:2])
    np.testing.assert_array_equal(c_library.preprocess(model, geometry, image), inputs)
    outputs = (golden.outputs[f"{name}_logits"][golden.slices[key]] for name in ("class", "mask"))
    result = c_library.postprocess(model, geometry, *outputs)
    c_library.assert_equal(result, golden.result(key))


def test_panoptic_merging_of_made_up_cases(shared):
    folder = shared / "golden/postproc"
    info = json.loads((folder / "panoptic_post.json").read_text())
    with np.load(folder / "panoptic_post.npz") as data:
        cases = dict(data)
    for name in info["cases"]:
        masks, classes = cases[f"{name}/mask_logits"], cases[f"{name}/class_logits"]
        for score, overlap in info["thresholds"]:
            known = make_classes(
                [{"name": str(i), "thing": i not in info["stuff_classes"]}
                 for i in range(info["num_classes"])],
                "postproc",
            )  # fmt: skip
            size = masks.shape[1:]
            result = segment_panoptic(
                classes,
                masks,
                Geometry(size, size, size),
                known,
                Thresholds(score, 0.5, overlap),
            )
            segment_map = result.segment_map
            class_of = np.array([s.class_id for s in result.segments] + [info["num_classes"]])
            # Rounding on the official machine decides pixels whose best scores are almost equal.
            on = torch.from_numpy(masks).sigmoid().numpy()
            weighted = np.sort(softmax(classes).max(1)[:, None, None] * on, axis=0)
            decided = weighted[-1] - weighted[-2] > 1e-6 if len(masks) > 1 else True
            key = f"{name}/segment_{score}_{overlap}"
            differs = segment_map != cases[key]
            differs |= class_of[segment_map] != cases[key.replace("segment", "class")]
            assert not (differs & decided).any(), key
            assert differs.mean() < 0.003, key
