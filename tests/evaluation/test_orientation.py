"""Labels refer to the stored pixels, regardless of the EXIF orientation."""

from __future__ import annotations

from pathlib import Path

import made_up
import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.evaluation.compare import compare
from eomt_deploy.sources import load_image

SIZE = (40, 60)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def as_stored(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def labelled(tmp_path, exported):
    """A model, and data labelled with its predictions on stored or upright pixels."""
    segmenter = Segmenter(exported("semantic"))

    def make(orientation: int, size: tuple[int, int] = SIZE, upright: bool = False) -> Path:
        root = tmp_path / f"data-{orientation}-{upright}"
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        for index in range(2):
            path = root / f"images/{index}.png"
            made_up.random_image(index, size).save(path, exif=exif(orientation))
            seen = load_image(path) if upright else as_stored(path)
            segmenter.predict(seen).label_image().save(root / f"labels/{index}.png")
        return root

    return segmenter, make


@pytest.mark.parametrize("size", [SIZE, (48, 48)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stored_pixels_are_scored(labelled, orientation, size):
    segmenter, make = labelled
    dataset = open_dataset([make(orientation, size)], segmenter.spec)
    assert evaluate(segmenter, dataset).scores.value == 100
    remarks = dataset.remarks()
    assert len(remarks) == (orientation != 1)
    if remarks:
        assert "2 images have an EXIF orientation, which was ignored" in remarks[0]
        assert "images/0.png, images/1.png" in remarks[0]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_that_only_fit_the_upright_image(labelled, orientation):
    segmenter, make = labelled
    dataset = open_dataset([make(orientation, upright=True)], segmenter.spec)
    assert evaluate(segmenter, dataset).scores.value == 100
    assert len(dataset.remarks()) == 1
    assert "2 images have been rotated by their EXIF orientation" in dataset.remarks()[0]
    assert compare(segmenter, segmenter, dataset.samples, labelled=True).labelled.a == 100


def test_coco_reads_stored_pixels_too(tmp_path, exported):
    root = made_up.coco_panoptic(tmp_path / "data")
    plain = Segmenter(exported("panoptic"))
    before = [s.image() for s in open_dataset([root], plain.spec).samples]
    for path in (root / "images").iterdir():
        made_up.random_image(int(path.stem), before[int(path.stem)].shape[:2]).save(
            path, exif=exif(6)
        )
    for path in (root / "panoptic").iterdir():  # a label is never rotated
        with Image.open(path) as image:
            image.load()
        image.save(path, exif=exif(3))
    for sample, wanted in zip(open_dataset([root], plain.spec).samples, before, strict=True):
        assert (sample.image() == wanted).all()
        assert sample.truth().size == wanted.shape[:2]


def test_predict_shows_the_image_upright_and_eval_says_what_it_took(labelled, cli, tmp_path):
    segmenter, make = labelled
    root = make(6)
    model = segmenter.engine.path
    code, out, err = cli("eval", model, "--data", root, "--worst", tmp_path / "worst")
    assert code == 0
    assert "mIoU 100.00" in out
    assert "2 images have an EXIF orientation, which was ignored" in err
    assert len(list((tmp_path / "worst").glob("*.jpg"))) == 2
    code, _, err = cli("compare", model, model, "--data", root, "-o", tmp_path / "c.png")
    assert code == 0
    assert "EXIF orientation" in err
    target = tmp_path / "one.png"
    assert cli("predict", model, root / "images/0.png", "-o", target)[0] == 0
    with Image.open(target) as image:
        assert image.height > image.width  # rotated by 90 degrees
