"""A site computes what Python computes: its scripts, run by Node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from eomt_deploy import Segmenter
from eomt_deploy.backends.web.build import build_web
from eomt_deploy.backends.web.config import WebConfig

pytestmark = pytest.mark.external

LOW = {
    "semantic": {},
    "panoptic": {"score": 0.1, "mask": 0.4, "overlap": 0.1},
    "instance": {"score": 0.2},
}


def close(score):
    """WebAssembly rounds about one of 2^29 sums twice (docs/cpp.md), e.g. one of those for the
    probability of a pixel. A score is a mean of probabilities, so it changes by at most 2^-24."""
    return pytest.approx(score, abs=2**-24, rel=0)


def assert_equal(found, expected):
    """The same segments, masks to the pixel, and COCO annotations."""
    regions = expected.regions()
    assert len(found.masks) == len(found.data["segments"]) == len(regions)
    assert found.data["task"] == expected.task
    for mask, values, region in zip(found.masks, found.data["segments"], regions, strict=True):
        np.testing.assert_array_equal(mask, region.mask)
        known = {name: values[name] for name in ("id", "class_id", "class_name", "thing", "area")}
        assert known == {name: getattr(region, name) for name in known}
        assert values["box"] == list(region.box)
        score = None if expected.task == "semantic" else close(region.score)
        assert values["score"] == score
    assert [a["id"] for a in found.coco["annotations"]] == list(range(1, len(regions) + 1))
    for annotation, wanted in zip(found.coco["annotations"], expected.to_coco(1), strict=True):
        if "score" in wanted:
            wanted["score"] = close(wanted["score"])
        assert {key: annotation[key] for key in annotation if key != "id"} == wanted


def processed(processor, image, found, values):
    """Python's result for the outputs of the site's network."""
    inputs, geometry = processor.preprocess(image)
    spec, count = processor.spec, len(inputs)
    classes, masks = found.logits
    return processor.postprocess(
        classes.reshape(count, spec.num_queries, -1),
        masks.reshape(count, spec.num_queries, *spec.mask_size),
        geometry,
        **{f"{name}_threshold": value for name, value in values.items()},
    )


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_ten_images(task, make_site, scenes, ten_images, in_node):
    """The post-processing gives the same pixels, also with other thresholds. The network is
    computed by another build of ONNX Runtime: a pixel whose mask logit is almost 0 may differ."""
    values, images = LOW[task], list(ten_images.values())
    found = in_node(make_site(task), images, [{}, values])
    with Segmenter(scenes(task), backend="onnxruntime", threads=1) as segmenter:
        for image, result in zip(images, found, strict=True):
            own = processed(segmenter.processor, image, result, values)
            assert_equal(result, own)
            python = segmenter.predict(
                image, **{f"{name}_threshold": value for name, value in values.items()}
            )
            assert len(own) == len(python)
            if task == "instance":
                masks = zip(own, python, strict=True)
                assert np.mean([(a.mask != b.mask).mean() for a, b in masks]) <= 1e-5
            else:
                np.testing.assert_array_equal(own.labels, python.labels)
    assert sum(len(result.masks) for result in found) > 40


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch(batch, saved, package, ten_images, in_node, tmp_path):
    """Three windows in batches of two: the last batch is filled up."""
    model = saved("fp32", batch, "semantic")
    build_web(WebConfig(model, tmp_path / "fixed" / "index.html", onnxruntime_web=package))
    image = ten_images["300x90"]
    with Segmenter(model, backend="onnxruntime", threads=1) as segmenter:
        expected = segmenter.predict(image)
        assert segmenter.processor.preprocess(image)[1].num_inputs > 2
    (found,) = in_node(tmp_path / "fixed", [image], [{}])
    for mask, region in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, region.mask)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions(precision, saved, package, ten_images, in_node, tmp_path):
    model = saved(precision)
    build_web(WebConfig(model, tmp_path / "low" / "index.html", onnxruntime_web=package))
    with Segmenter(model, backend="onnxruntime", threads=1) as segmenter:
        results = [segmenter.predict(image) for image in ten_images.values()]
    found = in_node(tmp_path / "low", list(ten_images.values()), [{}])
    pixels = same = 0
    for result, expected in zip(found, results, strict=True):
        labels = np.zeros(expected.size, int)
        for mask, values in zip(result.masks, result.data["segments"], strict=True):
            labels[mask] = values["class_id"] + 1
        wanted = np.zeros(expected.size, int)
        for region in expected:
            wanted[region.mask] = region.class_id + 1
        same += int((labels == wanted).sum())
        pixels += labels.size
    assert same / pixels > 0.99


def test_weights_in_a_side_file(exported, package, ten_images, in_node, tmp_path):
    """Large models have their weights in a second file."""
    model = tmp_path / "large.onnx"
    onnx.save_model(
        onnx.load(exported("panoptic")), model, save_as_external_data=True,
        location="large.onnx.data", size_threshold=2000,
    )  # fmt: skip
    build_web(WebConfig(model, tmp_path / "large" / "index.html", onnxruntime_web=package))
    assert (tmp_path / "large" / "model" / "large.onnx.data").stat().st_size > 100_000
    image = ten_images["scene-1"]
    with Segmenter(model, backend="onnxruntime", threads=1) as segmenter:
        expected = segmenter.predict(image)
    (found,) = in_node(tmp_path / "large", [image], [{}])
    for mask, region in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, region.mask)
