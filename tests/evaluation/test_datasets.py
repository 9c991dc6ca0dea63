from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
import tiny
from PIL import Image

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import DatasetError, UsageError
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.evaluation.datasets.label_maps import CITYSCAPES_IDS
from eomt_deploy.model_file import read_model_file
from eomt_deploy.spec import TASKS


@pytest.fixture
def spec(exported):
    return lambda task: read_model_file(exported(task)).spec


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("task", TASKS)
def test_panoptic_labels_serve_all_tasks(tmp_path, spec, task):
    root = made_up.coco_panoptic(tmp_path / "data")
    dataset = open_dataset([root], spec(task))
    assert dataset.format == "coco-panoptic"
    assert [s.name for s in dataset.samples] == ["images/0.jpg", "images/1.jpg", "images/2.jpg"]
    for index, sample in enumerate(dataset.samples):
        truth = sample.truth()
        ids = made_up.segment_ids(index, truth.size)
        assert sample.image().shape[:2] == truth.size
        if task == "semantic":
            assert (truth.class_map == np.where(ids == 0, -1, ids)).all()
            continue
        masks = {s.class_id: s for s in truth.segments}
        wanted = {i for i in np.unique(ids) if i and (task == "panoptic" or i >= 2)}
        assert masks.keys() == wanted
        assert all(s.crowd == (c == 4) for c, s in masks.items())


def test_zips_as_coco_ships_them(tmp_path, spec):
    """val2017.zip, and an annotations zip file with the PNG files in an inner zip file."""
    root = made_up.coco_panoptic(tmp_path / "data")
    inner = zipped(root / "panoptic", tmp_path / "inner.zip", "panoptic_val2017/")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    zipped(root / "images", downloads / "val2017.zip", "val2017/")
    with zipfile.ZipFile(downloads / "panoptic_annotations_trainval2017.zip", "w") as archive:
        archive.write(root / "panoptic.json", "annotations/panoptic_val2017.json")
        archive.write(root / "panoptic.json", "annotations/panoptic_train2017.json")
        archive.write(inner, "annotations/panoptic_val2017.zip")
    with pytest.raises(DatasetError, match="--split"):
        open_dataset([downloads], spec("panoptic"))
    plain = open_dataset([root], spec("panoptic"))
    for paths in ([downloads], sorted(downloads.iterdir())):
        packed = open_dataset(paths, spec("panoptic"), split="val2017")
        for a, b in zip(plain.samples, packed.samples, strict=True):
            assert a.truth() == b.truth()
            assert (a.image() == b.image()).all()


def test_instances_json_with_polygons_rle_and_crowd(tmp_path, spec):
    (tmp_path / "val2017").mkdir()
    made_up.random_image(0, (20, 30)).save(tmp_path / "val2017/a.jpg")
    square = [[5, 4, 15, 4, 15, 14, 5, 14]]
    column = {"size": [20, 30], "counts": [0, 20, 580]}
    annotations = [
        {"segmentation": square, "iscrowd": 0, "category_id": 12},
        {"segmentation": column, "iscrowd": 1, "category_id": 13},
    ]
    document = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [a | {"id": i, "image_id": 3} for i, a in enumerate(annotations)],
        "categories": [c for c in made_up.CATEGORIES if c["isthing"]],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    things = make_classes([c for c in tiny.CLASSES if c["thing"]], "things")
    dataset = open_dataset([tmp_path], replace(spec("instance"), classes=things))
    assert dataset.format == "coco-instances"
    first, second = dataset.samples[0].truth().segments
    assert (first.class_id, first.crowd, second.class_id, second.crowd) == (0, False, 1, True)
    from eomt_deploy.segments import Segment

    assert Segment.from_rle(0, things[0], 1, first.rle).area == 100
    assert Segment.from_rle(0, things[0], 1, second.rle).mask[:, 0].all()


def test_folder_of_label_pictures(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "data")
    for paths in ([root], [zipped(root, tmp_path / "data.zip", "camvid/")]):
        dataset = open_dataset(paths, spec("semantic"))
        assert (dataset.format, len(dataset.samples)) == ("folder", 3)
        labels = dataset.samples[1].truth().class_map
        assert (labels[:3] == -1).all()
        assert (labels[3:] == made_up.segment_ids(1, (40, 60))[3:]).all()


def test_cityscapes(tmp_path, spec):
    label = tmp_path / "gtFine/val/ulm/ulm_0_gtFine_labelIds.png"
    image = tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png"
    other = tmp_path / "gtFine/train/bonn/bonn_0_gtFine_labelIds.png"
    for path in (label, image, other):
        path.parent.mkdir(parents=True)
    values = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for path in (label, other):
        Image.fromarray(values).save(path)
    made_up.random_image(0, (2, 17)).save(image)
    many = make_classes([{"name": str(i), "thing": False} for i in range(19)], "test")
    dataset = open_dataset([tmp_path], replace(spec("semantic"), classes=many))
    assert [s.name for s in dataset.samples] == ["leftImg8bit/val/ulm/ulm_0_leftImg8bit.png"]
    found = dataset.samples[0].truth().class_map.ravel()
    assert [int(np.flatnonzero(found == i)[0]) for i in range(19)] == list(CITYSCAPES_IDS)
    assert (found == -1).sum() == 34 - 19
    with pytest.raises(DatasetError, match="Cityscapes has 19 classes"):
        open_dataset([tmp_path], spec("semantic"))


def test_ade20k(tmp_path, spec):
    root = tmp_path / "ADEChallengeData2016"
    for part in ("images/validation", "annotations/validation"):
        (root / part).mkdir(parents=True)
    values = np.array([[0, 1, 150]], np.uint8)
    Image.fromarray(values).save(root / "annotations/validation/ADE_val_1.png")
    made_up.random_image(0, (1, 3)).save(root / "images/validation/ADE_val_1.jpg")
    many = make_classes([{"name": str(i), "thing": False} for i in range(150)], "test")
    for path in (tmp_path, zipped(tmp_path, tmp_path.parent / f"{tmp_path.name}.zip")):
        dataset = open_dataset([path], replace(spec("semantic"), classes=many))
        assert dataset.format == "ade20k"
        assert dataset.samples[0].truth().class_map.tolist() == [[-1, 0, 149]]


@pytest.mark.shared_data
def test_real_coco_panoptic(shared, spec):
    from eomt_deploy import catalog

    classes = catalog.find_checkpoint("coco-panoptic-eomt-large-640").class_list()
    model = replace(spec("panoptic"), classes=classes)
    dataset = open_dataset([shared / "data/coco_panoptic_100"], model)
    segments = [s for sample in dataset.samples for s in sample.truth().segments]
    things = sum(classes[s.class_id].thing for s in segments)
    assert (len(dataset.samples), things, len(segments) - things) == (100, 746, 365)


def broken(root: Path, kind: str) -> str:
    """Make a valid data set invalid; returns a pattern that the error must match."""
    path = root / "panoptic.json"
    document = json.loads(path.read_text())
    if kind == "missing png":
        (root / "panoptic/1.png").unlink()
        return "1.png is missing"
    if kind == "missing image":
        (root / "images/1.jpg").unlink()
        return "1.jpg is missing"
    if kind == "cut png":
        png = root / "panoptic/1.png"
        png.write_bytes(png.read_bytes()[:60])
        return "1.png"
    if kind == "unknown id":
        document["annotations"][1]["segments_info"].pop()
    elif kind == "lost id":
        document["annotations"][1]["segments_info"].append({"id": 9999, "category_id": 11})
    elif kind == "no category name":
        del document["categories"][0]["name"]
    elif kind == "category":
        document["annotations"][1]["segments_info"][0]["category_id"] = 77
    elif kind == "twice":
        document["annotations"].append(document["annotations"][0])
    elif kind == "stray":
        document["annotations"][1]["image_id"] = 55
    elif kind == "size":
        document["images"][1]["width"] += 5
    elif kind == "no keys":
        del document["categories"]
    elif kind == "no annotation key":
        del document["annotations"][1]["segments_info"]
    elif kind == "other classes":
        document["categories"][0]["name"] = "submarine"
    elif kind == "empty":
        document["annotations"] = []
    path.write_text("{" if kind == "not json" else json.dumps(document))
    return {
        "unknown id": "1.png has segment ids",
        "lost id": "1.png lacks segment ids that its JSON file lists: 9999",
        "no category name": "has no name",
        "category": "category 77",
        "twice": "one annotation for each image",
        "stray": "image 55",
        "size": "1.png must be .*, got 44x57",
        "no keys": "has no categories",
        "no annotation key": "segments_info",
        "other classes": "submarine",
        "empty": "does not contain a labelled image",
        "not json": "panoptic.json is not JSON",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["missing png", "missing image", "cut png", "unknown id", "lost id", "size", "no keys", "empty",
     "no annotation key", "no category name", "category", "twice", "stray", "other classes",
     "not json"],
)  # fmt: skip
def test_broken_panoptic_data_name_the_file(tmp_path, spec, kind):
    root = made_up.coco_panoptic(tmp_path / "data")
    word = broken(root, kind)

    def read_all() -> None:
        for sample in open_dataset([root], spec("panoptic")).samples:
            sample.truth()

    with pytest.raises(Exception, match=word) as caught:
        read_all()
    assert type(caught.value).__module__ == "eomt_deploy.errors"


def test_broken_folders(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "data")
    Image.fromarray(np.full((40, 60), 37, np.uint8)).save(root / "labels/1.png")
    sample = open_dataset([root], spec("semantic")).samples[1]
    with pytest.raises(DatasetError, match=r"1\.png has values that are not class ids: 37"):
        sample.truth()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "labels/1.png")
    with pytest.raises(DatasetError, match=r"1\.png must have one 8-bit channel, got mode RGB"):
        sample.truth()
    (root / "images/1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1\.png has no image"):
        open_dataset([root], spec("semantic"))
    shutil.copy(root / "images/0.jpg", root / "images/1.jpg")
    (root / "classes.json").write_text(json.dumps([{"name": "x", "thing": False}]))
    with pytest.raises(DatasetError, match=r"classes\.json are not those"):
        open_dataset([root], spec("semantic"))


def test_nothing_there(tmp_path, spec):
    with pytest.raises(DatasetError, match="does not exist"):
        open_dataset([tmp_path / "none"], spec("semantic"))
    with pytest.raises(DatasetError, match=r"No semantic labels were recognised(.|\n)*labels/"):
        open_dataset([tmp_path], spec("semantic"))
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(DatasetError, match=r"cut\.zip is not a folder"):
        open_dataset([tmp_path / "cut.zip"], spec("semantic"))
    with pytest.raises(UsageError, match="pascal"):
        open_dataset([], spec("semantic"), format="pascal")
    with pytest.raises(UsageError, match="has no panoptic labels"):
        open_dataset([], spec("panoptic"), format="folder")


def test_two_data_sets_on_top_of_each_other_are_refused(tmp_path, spec):
    first = made_up.coco_panoptic(tmp_path / "a")
    second = made_up.coco_panoptic(tmp_path / "b")
    with pytest.raises(DatasetError, match="both contain"):
        open_dataset([first, second], spec("panoptic"))


def test_split_must_exist_and_be_said(tmp_path, spec):
    made_up.label_folder(tmp_path / "train")
    made_up.label_folder(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"several folders: train, val(.|\n)*--split"):
        open_dataset([tmp_path], spec("semantic"))
    chosen = open_dataset([tmp_path], spec("semantic"), split="val")
    assert [s.name for s in chosen.samples] == [f"val/images/{i}.jpg" for i in range(3)]
    with pytest.raises(DatasetError, match="'test'"):
        open_dataset([tmp_path], spec("semantic"), split="test")
    panoptic = made_up.coco_panoptic(tmp_path / "coco")
    with pytest.raises(DatasetError, match="No panoptic labels of the split 'nonsense'"):
        open_dataset([panoptic], spec("panoptic"), split="nonsense")


def test_images_of_another_split_are_never_used(tmp_path, spec):
    for name in ("train", "val"):
        made_up.coco_panoptic(tmp_path / name)
    dataset = open_dataset([tmp_path], spec("panoptic"), split="val")
    assert all(s.name.startswith("val/images/") for s in dataset.samples)
    shutil.rmtree(tmp_path / "val/images")
    with pytest.raises(DatasetError, match=r"0\.jpg is missing"):
        open_dataset([tmp_path], spec("panoptic"), split="val")


def test_what_systems_leave_behind_and_links(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "real")
    for junk in (
        "labels/._0.png",
        "__MACOSX/labels/._0.png",
        "images/.DS_Store",
        "labels/.ipynb_checkpoints/0-checkpoint.png",
        "images/@eaDir/0.jpg",
        ".cache/labels/0.png",
    ):
        path = root / junk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")
    (root / "images/0.jpg").rename(root / "images/0.JPG")
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in ("images", "labels"):
        (linked / part).symlink_to(root / part)
    (linked / "loop").symlink_to(linked)
    for paths in ([root], [linked], [zipped(root, tmp_path / "data.zip")]):
        assert len(open_dataset(paths, spec("semantic")).samples) == 3


def test_zip_members_that_cannot_be_read(tmp_path, spec):
    archive = zipped(made_up.label_folder(tmp_path / "data"), tmp_path / "data.zip")
    content = bytearray(archive.read_bytes())
    start = content.find(b"labels/0.png") + 40  # inside the first label's bytes
    content[start : start + 20] = bytes(20)
    archive.write_bytes(content)
    sample = open_dataset([archive], spec("semantic")).samples[0]
    with pytest.raises(DatasetError, match=r"labels/0\.png cannot be read(.|\n)*unpack"):
        sample.truth()


def test_images_without_labels_are_reported(tmp_path, spec):
    root = made_up.label_folder(tmp_path / "data")
    (root / "labels/1.png").unlink()
    dataset = open_dataset([root], spec("semantic"))
    assert len(dataset.samples) == 2
    assert dataset.notes == ("1 image without a label",)
    made_up.random_image(0, (40, 60)).save(root / "labels/1.jpg")
    with pytest.raises(DatasetError, match=r"1\.jpg is not a PNG file"):
        open_dataset([root], spec("semantic"))


def test_instance_model_and_data_with_more_stuff(tmp_path, spec):
    root = made_up.coco_panoptic(tmp_path / "data")
    things = make_classes([c for c in tiny.CLASSES if c["thing"]], "things")
    dataset = open_dataset([root], replace(spec("instance"), classes=things))
    truths = [sample.truth() for sample in dataset.samples]
    assert {s.class_id for truth in truths for s in truth.segments} == {0, 1, 2}


def test_thing_that_the_model_holds_for_stuff_is_refused(tmp_path, spec):
    root = made_up.coco_panoptic(tmp_path / "data")
    document = json.loads((root / "panoptic.json").read_text())
    document["categories"][0]["isthing"] = 1  # sky
    (root / "panoptic.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"same things(.|\n)*only in the data: sky"):
        open_dataset([root], spec("instance"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"category_id": 99}, "category 99"),
        ({"segmentation": []}, "No annotation of .* has a mask"),
        ({"segmentation": [[1, 2]]}, "three points"),
        ({"segmentation": {"size": [9, 9], "counts": [0, 81]}}, r"\[9, 9\]"),
        ({"image_id": 7}, "image 7"),
    ],
)
def test_broken_instances(tmp_path, spec, change, word):
    made_up.random_image(0, (20, 30)).save(tmp_path / "a.jpg")
    annotation = {"id": 5, "image_id": 3, "category_id": 12, "iscrowd": 0,
                  "segmentation": [[5, 4, 15, 4, 15, 14]]}  # fmt: skip
    document = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [annotation | change],
        "categories": [c for c in made_up.CATEGORIES if c["isthing"]],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=word):
        open_dataset([tmp_path], spec("instance"))
