"""A trained network on real images, from checkpoint to score."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.exporting import ExportConfig, export

README_MIOU = 72.76
VOID = 255


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("every", "count", "expected"),
    [
        pytest.param(30, 4, 73.19, id="every thirtieth"),
        pytest.param(1, 101, README_MIOU, id="all", marks=pytest.mark.slow),
    ],
)
def test_miou_of_the_official_code(shared, tmp_path, every, count, expected):
    checkpoints, data = shared / "checkpoints", shared / "data/camvid/val"
    classes = checkpoints / "classes.json"
    path = tmp_path / "camvid.onnx"
    weights = checkpoints / "camvid_semantic_eomt_small.bin"
    export(ExportConfig(str(weights), path, task="semantic", classes=classes))
    images = sorted((data / "images").glob("*.jpg"))[::every]
    assert len(images) == count
    with Segmenter(path) as segmenter:
        number = len(segmenter.spec.classes)
        confusion = np.zeros((number, number), np.int64)
        for image, result in zip(images, segmenter.stream(images), strict=True):
            truth = np.asarray(Image.open(data / "labels" / f"{image.stem}.png")).astype(int)
            known = truth != VOID
            pairs = truth[known] * number + result.class_map[known]
            confusion += np.bincount(pairs, minlength=number**2).reshape(number, number)
    hits = np.diag(confusion)
    miou = 100 * (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()
    assert miou == pytest.approx(expected, abs=0.05)
