"""Invalid COCO data sets raise one error that names the file."""

from __future__ import annotations

import json
import random
import zipfile
from typing import Any

import made_up
import pytest
from coco_documents import write

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.evaluation.dataset_files import FileIndex
from eomt_deploy.model_file import read_model_file

PIECES: list[Any] = [None, True, -1, 0, 2, 1e400, 10**30, 0.5, "", "x", "\ud800", [], [[]], {},
                     [1, 2], {"size": [1, 1], "counts": [1]}, {"size": 3, "counts": "x"},
                     {"size": [61, 80], "counts": "garbage"}, {"size": [61, 80], "counts": [-1]},
                     [["a"] * 6], [[1e400] * 6], [[[1, 2], [3, 4], [5, 6]]], "../a"]  # fmt: skip

ROUNDS = 100


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_any_wrong_value_is_one_error(labels, tmp_path, exported, task):
    """Each seeded mutation gives samples, or one DatasetError that names a file."""
    if task == "instance":
        segmenter, document, images = labels
        spec = segmenter.spec
        root = write(tmp_path / "data", document, "instances.json", images, ".")
        path = root / "instances.json"
    else:
        spec = read_model_file(exported("panoptic")).spec
        path = made_up.coco_panoptic(tmp_path / "data") / "panoptic.json"
        document = json.loads(path.read_text())
    rng = random.Random(0)
    text = json.dumps(document)
    failed = 0
    for _ in range(ROUNDS):
        changed = json.loads(text)
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
    assert failed == ROUNDS


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
            open_dataset([root], read_model_file(exported(task)).spec)


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
    spec = read_model_file(exported("semantic")).spec
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
