"""A trained network on photographs, from checkpoint to score."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.exporting import ExportConfig, export

README_MIOU = 72.76
VOID = 255


@pytest.mark.shared_data
def test_miou_of_the_official_code(shared, tmp_path):
    checkpoints, data = shared / "checkpoints", shared / "data/camvid/val"
    classes = checkpoints / "classes.json"
    count = len(json.loads(classes.read_text()))
    path = tmp_path / "camvid.onnx"
    weights = checkpoints / "camvid_semantic_eomt_small.bin"
    export(ExportConfig(str(weights), path, task="semantic", classes=classes))
    confusion = np.zeros((count, count), np.int64)
    images = sorted((data / "images").glob("*.jpg"))
    assert len(images) == 101
    with Segmenter(path) as segmenter:
        for image_path, result in zip(images, segmenter.stream(images), strict=True):
            truth = np.asarray(Image.open(data / "labels" / f"{image_path.stem}.png")).astype(int)
            known = truth != VOID
            pairs = truth[known] * count + result.class_map[known]
            confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
    hits = np.diag(confusion)
    miou = 100 * (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()
    assert miou == pytest.approx(README_MIOU, abs=0.1)
