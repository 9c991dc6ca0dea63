"""COCO instance data sets from different tools get the scores of pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest
from coco_documents import SIZES, THINGS, renamed, with_root, write
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt_deploy import Segmenter
from eomt_deploy.classes import make_classes
from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.model_file import read_model_file
from eomt_deploy.sources import load_image


def ap_of_pycocotools(segmenter: Segmenter, document: dict[str, Any], images: Path) -> list[float]:
    ids = {category["name"]: category["id"] for category in document["categories"]}
    found = []
    for entry in document["images"]:
        name = entry["file_name"].replace("\\", "/").rsplit("/", 1)[-1]
        for segment in segmenter.predict(images / name).segments:
            if segment.thing:
                found.append(
                    {
                        "image_id": entry["id"],
                        "category_id": ids[segment.class_name],
                        "segmentation": segment.rle,
                        "score": segment.score,
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)  # it replaces the masks
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats[:6]]


def from_zero(document: dict[str, Any]) -> dict[str, Any]:
    """As from Label Studio, with category ids from 0."""
    return document | {
        "categories": [c | {"id": c["id"] - 1} for c in document["categories"]],
        "annotations": [
            a | {"category_id": a["category_id"] - 1, "ignore": 0} for a in document["annotations"]
        ],
    }


def with_boxes(document: dict[str, Any]) -> dict[str, Any]:
    """Insert annotations without a mask."""
    boxes = [
        document["annotations"][0] | {"id": 900 + i, "segmentation": empty}
        for i, empty in enumerate(([], [[]], None, {}))
    ]
    return document | {"annotations": [*boxes, *document["annotations"]]}


# Layout of each tool: the document, the name of the JSON file, the folder of the images.
STYLES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str, str]] = {
    "plain": (lambda d: d, "annotations/instances_val.json", "val"),
    "roboflow": (with_root, "valid/_annotations.coco.json", "valid"),
    "roboflow, renamed": (with_root, "valid/instances_val.json", "valid"),
    "root of the same name": (
        lambda d: d | {"categories": [{"id": 0, "name": THINGS[0]}, *d["categories"]]},
        "instances.json", ".",
    ),
    "label studio": (from_zero, "result.json", "images"),
    "label studio, prefix": (
        lambda d: renamed(from_zero(d), lambda n: f"images/{n}"), "result.json", "images",
    ),
    "label studio, windows": (
        lambda d: renamed(from_zero(d), lambda n: f"images\\{n}"), "result.json", "images",
    ),
    "label studio, local files": (
        lambda d: renamed(from_zero(d), lambda n: f"/data/local-files/?d=some%20where/{n}"),
        "result.json", "images",
    ),
    "backslash": (
        lambda d: renamed(d, lambda n: f"val\\{n}"), "annotations/instances_val.json", "val",
    ),
    "absolute": (
        lambda d: renamed(d, lambda n: f"/home/someone/data/val/{n}"), "instances.json", "val",
    ),
    "absolute, windows": (
        lambda d: renamed(d, lambda n: f"C:\\data\\val\\{n}"), "instances.json", "val",
    ),
    "addresses": (
        lambda d: renamed(d, lambda n: f"https://example.com/data/{n}?token=5"), "labels.json", "x",
    ),
    "boxes in between": (with_boxes, "annotations/instances_val.json", "val"),
    "texts as ids": (
        lambda d: d
        | {
            "images": [i | {"id": f"i{i['id']}"} for i in d["images"]],
            "annotations": [a | {"image_id": f"i{a['image_id']}"} for a in d["annotations"]],
        },
        "instances.json", ".",
    ),
    "any name, beside a folder of that name": (lambda d: d, "val.json", "val"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_scored_as_pycocotools_scores_it(labels, tmp_path, style):
    segmenter, document, images = labels
    change, name, folder = STYLES[style]
    root = write(tmp_path / "data", change(document), name, images, folder)
    wanted = ap_of_pycocotools(segmenter, document, images)
    assert 10 < wanted[0] < 95
    for format in (None, "coco-instances"):
        dataset = open_dataset([root], segmenter.spec, format=format)
        assert dataset.format == "coco-instances"
        scores = evaluate(segmenter, dataset).scores.summary
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        for key, value in zip(names, wanted, strict=True):
            assert scores.get(key, -100) == pytest.approx(value, abs=0.01), key
    notes = " ".join(dataset.notes)
    assert ("my-project" in notes) == style.startswith("roboflow")
    assert ("4 annotations" in notes and "no mask" in notes) == (style == "boxes in between")


def test_an_annotation_with_an_area_of_zero_is_a_small_one(labels, tmp_path):
    segmenter, document, images = labels
    entries = [a | {"area": 0} for a in document["annotations"]]
    changed = document | {"annotations": entries}
    root = write(tmp_path / "data", changed, "instances.json", images, ".")
    wanted = ap_of_pycocotools(segmenter, changed, images)
    scores = evaluate(segmenter, open_dataset([root], segmenter.spec)).scores.summary
    assert scores["APs"] == pytest.approx(wanted[3], abs=0.01)


def test_splits_of_roboflow(labels, tmp_path):
    segmenter, document, images = labels
    for split in ("train", "valid", "test"):
        write(tmp_path, with_root(document), f"{split}/_annotations.coco.json", images, split)
    with pytest.raises(DatasetError, match="--split"):
        open_dataset([tmp_path], segmenter.spec)
    dataset = open_dataset([tmp_path], segmenter.spec, split="valid")
    assert [s.name for s in dataset.samples] == [f"valid/{name}.jpg" for name in SIZES]


def test_the_literal_file_name_is_tried_first(labels, tmp_path):
    segmenter, document, images = labels
    odd = renamed(document, lambda n: f"100%25 {n}")
    root = write(tmp_path / "data", odd, "instances.json", images, "val")
    for name in SIZES:
        (root / f"val/{name}.jpg").rename(root / f"val/100%25 {name}.jpg")
    assert open_dataset([root], segmenter.spec).samples[0].image().shape[:2] == SIZES["a"]
    for name in SIZES:
        (root / f"val/100%25 {name}.jpg").rename(root / f"val/100% {name}.jpg")
    assert open_dataset([root], segmenter.spec).samples[0].image().shape[:2] == SIZES["a"]


def test_two_images_that_would_be_the_same_file(labels, tmp_path):
    segmenter, document, images = labels
    twice = [*document["images"], document["images"][0] | {"id": 7, "file_name": "other/a.jpg"}]
    root = write(tmp_path, document | {"images": twice}, "instances.json", images, "val")
    with pytest.raises(DatasetError, match=r"a\.jpg and other/a\.jpg would both be val/a\.jpg"):
        open_dataset([root], segmenter.spec)


def test_the_folder_decides_between_images_of_one_name(labels, tmp_path):
    segmenter, document, images = labels
    named = renamed(document, lambda n: f"/mnt/data/second/{n}")
    root = write(tmp_path, named, "result.json", images, "first")
    write(root, named, "result.json", images, "second")
    assert open_dataset([root], segmenter.spec).samples[0].name == "second/a.jpg"
    unclear = renamed(document, lambda n: n)
    write(root, unclear, "result.json", images, "second")
    with pytest.raises(DatasetError, match="ambiguous"):
        open_dataset([root], segmenter.spec)


def test_boxes_alone_cannot_be_scored(labels, tmp_path):
    segmenter, document, images = labels
    boxes = [a | {"segmentation": []} for a in document["annotations"]]
    root = write(tmp_path, document | {"annotations": boxes}, "instances.json", images, ".")
    with pytest.raises(DatasetError, match=r"No annotation of instances\.json has a mask"):
        open_dataset([root], segmenter.spec)


def test_categories_that_matter(labels, tmp_path):
    segmenter, document, images = labels
    used = document | {"annotations": [*document["annotations"]]}
    used["annotations"].append(document["annotations"][0] | {"id": 99, "category_id": 0})
    double = document["categories"] + [{"id": 50, "name": THINGS[0]}]
    both = [*document["annotations"], document["annotations"][0] | {"category_id": 50}]
    both.append(document["annotations"][0] | {"category_id": 1})
    for changed, word in (
        (with_root(used), "only in the data: my-project"),
        (document | {"categories": document["categories"][:-1]}, f"in the model: {THINGS[-1]}"),
        (document | {"categories": double, "annotations": both}, "several categories of the same"),
        (document | {"categories": document["categories"] * 2}, "category id 1 twice"),
    ):
        root = write(tmp_path, changed, "instances.json", images, ".")
        with pytest.raises(DatasetError, match=word):
            open_dataset([root], segmenter.spec)


def test_format_decides_when_no_name_does(labels, tmp_path, cli, exported):
    segmenter, document, images = labels
    root = write(tmp_path / "data", document, "my labels (2).JSON", images, "pictures")
    dataset = open_dataset([root], segmenter.spec, format="coco-instances")
    assert len(dataset.samples) == 3
    (root / "settings.json").write_text('{"images": [], "tool": "x"}')  # not labels
    assert len(open_dataset([root], segmenter.spec, format="coco-instances").samples) == 3
    (root / "more.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"2 files with instance labels(.|\n)*--split"):
        open_dataset([root], segmenter.spec, format="coco-instances")
    dataset = open_dataset([root], segmenter.spec, format="coco-instances", split="more")
    assert len(dataset.samples) == 3
    with pytest.raises(
        DatasetError, match=r"No JSON file with panoptic labels(.|\n)*segments_info"
    ):
        open_dataset([root], segmenter.spec, format="coco-panoptic")
    (root / "more.json").unlink()
    code, out, _ = cli("eval", exported("instance"), "--data", root, "--format", "coco-instances")
    assert code == 0
    assert "AP" in out


def test_panoptic_labels_under_another_name(tmp_path, exported):
    spec = read_model_file(exported("panoptic")).spec
    root = made_up.coco_panoptic(tmp_path / "data")
    (root / "panoptic.json").rename(root / "export.json")
    (root / "panoptic").rename(root / "export")
    dataset = open_dataset([root], spec)
    assert dataset.format == "coco-panoptic"
    assert dataset.samples[0].truth().segments


@pytest.mark.shared_data
def test_the_cases_of_the_development_data(shared, exported):
    classes = make_classes(
        [{"name": n, "thing": True} for n in ("person", "animal", "vehicle", "object")], "test"
    )
    spec = replace(read_model_file(exported("instance")).spec, classes=classes)
    truths = {}
    for root in sorted((shared / "cases/coco").iterdir()):
        dataset = open_dataset([root], spec)
        truths[root.name] = [sample.truth() for sample in dataset.samples]
        for sample in dataset.samples:
            assert sample.image().shape[:2] == sample.truth().size
            path = next(root.rglob(Path(sample.name).name))
            assert (sample.image() == load_image(path)).all()
    assert len(truths) == 5
    assert all(truth == truths["rf"] for truth in truths.values())
