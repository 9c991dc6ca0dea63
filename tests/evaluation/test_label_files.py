"""Images and labels that are not valid, too large, deeper than 8 bits or ambiguous."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import made_up
import numpy as np
import pytest
from PIL import Image

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.model_file import read_model_file


@pytest.fixture
def spec(exported):
    return lambda task: read_model_file(exported(task)).spec


def test_two_images_for_one_label(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "data")
    made_up.random_image(5, (40, 60)).save(root / "images/1.png")
    with pytest.raises(
        DatasetError, match=r"1\.png must have 1 image, got 2: (.|\n)*1\.jpg, images/1\.png"
    ):
        open_dataset([root], spec("semantic"))


def test_labels_that_decode_to_gigabytes(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "data")
    Image.new("L", (60, 40)).save(root / "labels/0.png")
    dataset = open_dataset([root], spec("semantic"), max_pixels=2399)
    for read in (dataset.samples[0].truth, dataset.samples[1].image):
        with pytest.raises(DatasetError, match=r"\.png has 60x40 (.|\n)*limit of 2,399"):
            read()
    panoptic = made_up.coco_panoptic(tmp_path / "coco")
    sample = open_dataset([panoptic], spec("panoptic"), max_pixels=2600).samples[0]
    Image.new("RGB", (51, 51)).save(panoptic / "panoptic/0.png")
    with pytest.raises(DatasetError, match=r"0\.png has 51x51 (.|\n)*limit of 2,600"):
        sample.truth()


def test_labels_of_16_bits(tmp_path, spec):
    root = made_up.coco_panoptic(tmp_path / "data")
    cv2.imwrite(str(root / "panoptic/0.png"), np.zeros((40, 60, 3), np.uint16))
    with pytest.raises(DatasetError, match=r"0\.png has more than 8 bits"):
        open_dataset([root], spec("panoptic")).samples[0].truth()
    folder = made_up.label_folder(tmp_path / "folder")
    cv2.imwrite(str(folder / "labels/0.png"), np.zeros((40, 60), np.uint16))
    with pytest.raises(DatasetError, match=r"0\.png must have one 8-bit channel, got mode I;16"):
        open_dataset([folder], spec("semantic")).samples[0].truth()


def test_an_unreadable_image_or_folder_is_a_dataset_error(tmp_path, spec, monkeypatch):
    root = made_up.label_folder(tmp_path / "data")
    (root / "images/0.jpg").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"0\.jpg is not an image"):
        open_dataset([root], spec("semantic")).samples[0].image()
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "images":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"images cannot be read: Permission denied"):
        open_dataset([root], spec("semantic"))
