"""COCO instance data sets as tools write them, scored as pycocotools scores them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import made_up
import numpy as np
import pytest
import tiny
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt_deploy import Segmenter
from eomt_deploy.artifact import read_artifact
from eomt_deploy.classes import make_classes
from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.evaluation.dataset_files import FileIndex
from eomt_deploy.sources import load_image

THINGS = [c["name"] for c in tiny.CLASSES if c["thing"]]
SIZES = {"a": (61, 80), "b": (96, 75), "c": (64, 64)}


@pytest.fixture(scope="module")
def labels(exported, tmp_path_factory) -> tuple[Segmenter, dict[str, Any], Path]:
    """A model, labels that it partly agrees with, and the images, as `a.jpg`.

    The labels are what the model itself finds, as polygons, some of them shifted or of another
    class: a random network would agree with no others.
    """
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [{"id": 1 + i, "name": name} for i, name in enumerate(THINGS)]
    segmenter = Segmenter(exported("instance"))
    for number, (name, size) in enumerate(SIZES.items(), 100):
        made_up.photo(number, size).save(folder / f"{name}.jpg", quality=95)
        entry = {"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
        document["images"].append(entry)
        found = sorted(segmenter.predict(folder / f"{name}.jpg").segments, key=lambda s: -s.score)
        for segment in found[:9]:
            shift = rng.choice([0, 0, 2, 9])
            mask = segment.mask.astype(np.uint8)
            rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            polygons = [(r.ravel() + float(shift)).tolist() for r in rings if len(r) >= 3]
            if not polygons:
                continue
            annotation = {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": 1 + THINGS.index(segment.class_name),
                "segmentation": polygons,
                "iscrowd": 0,
            }
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
            annotation["area"] = float(coco_mask.area(rle))
            annotation["bbox"] = coco_mask.toBbox(rle).tolist()
            document["annotations"].append(annotation)
    assert len(document["annotations"]) > 10
    return segmenter, document, folder


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


def write(root: Path, document: Any, name: str, images: Path, folder: str) -> Path:
    """A data set: the JSON under a name, and the images in a folder."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in images.iterdir():
        (root / folder / path.name).write_bytes(path.read_bytes())
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))
    return root


def renamed(document: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    images = [i | {"file_name": rename(i["file_name"])} for i in document["images"]]
    return document | {"images": images}


def with_root(document: dict[str, Any]) -> dict[str, Any]:
    """As Roboflow: a root category 0, with the name of the project."""
    root = {"id": 0, "name": "my-project", "supercategory": "none"}
    return document | {"categories": [root, *document["categories"]]}


def from_zero(document: dict[str, Any]) -> dict[str, Any]:
    """As Label Studio: categories count from 0."""
    return document | {
        "categories": [c | {"id": c["id"] - 1} for c in document["categories"]],
        "annotations": [
            a | {"category_id": a["category_id"] - 1, "ignore": 0} for a in document["annotations"]
        ],
    }


def with_boxes(document: dict[str, Any]) -> dict[str, Any]:
    """Annotations without a mask in between."""
    boxes = [
        document["annotations"][0] | {"id": 900 + i, "segmentation": empty}
        for i, empty in enumerate(([], [[]], None, {}))
    ]
    return document | {"annotations": [*boxes, *document["annotations"]]}


# How a tool writes it: the document, the name of the JSON, the folder of the images.
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


def test_a_name_is_taken_as_it_stands_first(labels, tmp_path):
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
    with pytest.raises(DatasetError, match=r"No JSON with panoptic labels(.|\n)*segments_info"):
        open_dataset([root], segmenter.spec, format="coco-panoptic")
    (root / "more.json").unlink()
    code, out, _ = cli("eval", exported("instance"), "--data", root, "--format", "coco-instances")
    assert code == 0
    assert "AP" in out


def test_panoptic_labels_under_another_name(tmp_path, exported):
    spec = read_artifact(exported("panoptic")).spec
    root = made_up.coco_panoptic(tmp_path / "data")
    (root / "panoptic.json").rename(root / "export.json")
    (root / "panoptic").rename(root / "export")
    dataset = open_dataset([root], spec)
    assert dataset.format == "coco-panoptic"
    assert dataset.samples[0].truth().segments


PIECES: list[Any] = [None, True, -1, 0, 2, 1e400, 10**30, 0.5, "", "x", "\ud800", [], [[]], {},
                     [1, 2], {"size": [1, 1], "counts": [1]}, {"size": 3, "counts": "x"},
                     {"size": [61, 80], "counts": "garbage"}, {"size": [61, 80], "counts": [-1]},
                     [["a"] * 6], [[1e400] * 6], [[[1, 2], [3, 4], [5, 6]]], "../a"]  # fmt: skip


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_any_wrong_value_is_one_error(labels, tmp_path, exported, task):
    """Seeded mutations: each gives samples, or one DatasetError that names a file."""
    if task == "instance":
        segmenter, document, images = labels
        spec = segmenter.spec
        root = write(tmp_path / "data", document, "instances.json", images, ".")
        path = root / "instances.json"
    else:
        spec = read_artifact(exported("panoptic")).spec
        path = made_up.coco_panoptic(tmp_path / "data") / "panoptic.json"
        document = json.loads(path.read_text())
    rng = random.Random(0)
    failed = 0
    for _ in range(400):
        changed = json.loads(json.dumps(document))
        for _ in range(rng.choice((1, 1, 2))):
            place: Any = changed
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                if not keys:
                    break
                key = rng.choice(list(keys))
                if isinstance(place[key], list | dict) and rng.random() < 0.8:
                    place = place[key]
                    continue
                if isinstance(place, dict) and rng.random() < 0.2:
                    del place[key]
                else:
                    place[key] = rng.choice(PIECES)
                break
        path.write_text(json.dumps(changed))
        try:
            for sample in open_dataset([path.parent], spec).samples:
                sample.truth()
                sample.image()
        except DatasetError as error:
            message = str(error)
            message.encode(errors="backslashreplace")
            failed += any(word in message for word in (path.name, ".png", ".jpg", "data"))
        else:
            failed += 1
    assert failed == 400


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"images":' * 50_000,
        b'{"images": [], "annotations": [], "categories": [' + b"[" * 900 + b"]" * 900 + b"]}",
        b"\xff\xfe\x00",
        b"",
        b"null",
        b"[]",
        b'{"images": {}, "annotations": [], "categories": []}',
        b'{"images": [3], "annotations": [], "categories": []}',
        b'{"images": [{"id": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_json_that_is_not_a_data_set(tmp_path, exported, content):
    for name, task in (("instances.json", "instance"), ("panoptic.json", "panoptic")):
        root = tmp_path / task
        root.mkdir()
        (root / name).write_bytes(content)
        with pytest.raises(DatasetError, match=name):
            open_dataset([root], read_artifact(exported(task)).spec)


def test_sizes_that_would_take_all_memory(labels, tmp_path):
    segmenter, document, images = labels
    huge = [i | {"height": 10**6, "width": 10**6} for i in document["images"]]
    root = write(tmp_path, document | {"images": huge}, "instances.json", images, ".")
    with pytest.raises(DatasetError, match=r"1000000x1000000, more than the limit"):
        open_dataset([root], segmenter.spec)
    write(tmp_path, document, "instances.json", images, ".")
    with pytest.raises(DatasetError, match=r"61x80, more than the limit of 100 pixels"):
        open_dataset([root], segmenter.spec, max_pixels=100)


def test_zip_members_that_inflate_to_gigabytes(tmp_path, exported):
    spec = read_artifact(exported("semantic")).spec
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels/0.png", b"x")
        with file.open("images/0.png", "w") as member:
            for _ in range(60):
                member.write(bytes(1 << 20))
        file.writestr(".", b"an odd name")
    assert archive.stat().st_size < 100_000
    sample = open_dataset([archive], spec, max_pixels=1_000_000).samples[0]
    with pytest.raises(DatasetError, match=r"labels/0\.png is not an image"):
        sample.truth()
    with pytest.raises(DatasetError, match=r"images/0\.png is larger than 8 MB"):
        FileIndex([archive], max_pixels=1_000_000).image("images/0.png", (1, 1))


@pytest.mark.shared_data
def test_the_cases_of_the_development_data(shared, exported):
    classes = make_classes(
        [{"name": n, "thing": True} for n in ("person", "animal", "vehicle", "object")], "test"
    )
    spec = replace(read_artifact(exported("instance")).spec, classes=classes)
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
