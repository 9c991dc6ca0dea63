from __future__ import annotations

import json

import pytest

from eomt_deploy.catalog import class_lists
from eomt_deploy.classes import (
    default_color,
    display_name,
    make_classes,
    read_class_list,
    read_classes,
)
from eomt_deploy.errors import UsageError


def test_classes_count_from_zero_and_keep_their_colours(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps([
        {"name": "sky", "thing": False, "color": [1, 2, 3]},
        {"name": "cat", "thing": True},
    ]))  # fmt: skip
    sky, cat = read_classes(path)
    assert (sky.id, sky.name, sky.thing, sky.color) == (0, "sky", False, (1, 2, 3))
    assert (cat.id, cat.thing, cat.color) == (1, True, default_color(1))


def test_colours_of_many_classes_differ():
    assert len({default_color(i) for i in range(150)}) == 150


@pytest.mark.parametrize(
    "entry",
    [
        "sky",
        {"name": "x"},
        {"thing": True},
        {"name": 3, "thing": True},
        {"name": "x", "thing": 1},
        {"name": "x", "thing": True, "color": [0, 0]},
        {"name": "x", "thing": True, "color": [0, 0, 256]},
    ],
)
def test_entries_that_are_no_class_are_named(entry):
    with pytest.raises(UsageError, match="Entry 1 of LIST"):
        make_classes([{"name": "ok", "thing": True}, entry], "LIST")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{}", "neither a list"),
        ("5", "neither a list"),
        ('{"categories": 5}', "neither a list"),
        ("[", "not JSON"),
        ("[]", "empty"),
        ('{"categories": []}', "empty"),
        ("[" * 10_000 + "]" * 10_000, "not JSON: it is nested too deeply"),
        ('[{"name": ' * 10_000, "not JSON"),
        (" " * (17 << 20), "not JSON: it is larger than 16 MiB"),
        ("\xff\xfe\x00", "not JSON"),
        ("[5]", "Entry 0 of .* is not a class"),
        ("[null]", "Entry 0 of .* is not a class"),
        ('["road", 5]', "Entry 1 of .* is not a class"),
    ],
)
def test_files_that_are_no_list(tmp_path, text, word):
    path = tmp_path / "classes.json"
    path.write_text(text, "latin-1")
    with pytest.raises(UsageError, match=word):
        read_classes(path, "semantic")


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_classes(tmp_path / "none.json")


def write(folder, content, encoding="utf-8"):
    path = folder / "classes.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    return path


def pairs(classes):
    return [(info.id, info.name, info.thing) for info in classes]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_any_unicode_encoding(tmp_path, encoding):
    path = write(tmp_path, [{"name": "Straße", "thing": False}], encoding)
    assert pairs(read_classes(path)) == [(0, "Straße", False)]


@pytest.mark.parametrize("entries", [["road", "car"], [{"name": "road"}, {"name": "car"}]])
def test_plain_names(tmp_path, entries):
    path = write(tmp_path, entries)
    assert pairs(read_classes(path, "semantic")) == [(0, "road", False), (1, "car", False)]
    assert pairs(read_classes(path, "instance")) == [(0, "road", True), (1, "car", True)]
    for task, why in (("panoptic", "each class must be"), (None, "not known here")):
        with pytest.raises(UsageError, match='has no "thing"') as caught:
            read_classes(path, task)
        assert why in caught.value.why


def test_ids_decide_the_order(tmp_path):
    entries = [
        {"id": 2, "name": "car", "thing": True},
        {"id": 0, "name": "road", "thing": False, "color": [1, 2, 3]},
        {"id": 1, "name": "sky", "thing": False},
    ]
    classes = read_classes(write(tmp_path, entries))
    assert pairs(classes) == [(0, "road", False), (1, "sky", False), (2, "car", True)]
    assert classes[0].color == (1, 2, 3)
    assert pairs(make_classes(entries, "LIST")) == pairs(classes)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 2, 3], "they go from 1 to 3"),
        ([0, 1, 3], "they go from 0 to 3"),
        ([-1, 0, 1], "they go from -1 to 1"),
        ([0, 1, 1], "1 is used more than once"),
        (["0", "1", "2"], '"0" is not an integer'),
        ([0, 1.0, 2], "1.0 is not an integer"),
        ([0, True, 2], "true is not an integer"),
        ([0, None, 2], "null is not an integer"),
        ([0, [1], 2], "is not an integer"),
        ([0, 1, "missing"], "1 of 3 entries have no id"),
    ],
)
def test_ids_that_are_no_columns(tmp_path, ids, found):
    entries = [
        {"name": name, "thing": False} | ({} if i == "missing" else {"id": i})
        for i, name in zip(ids, "abc", strict=True)
    ]
    with pytest.raises(UsageError, match=r"not the numbers 0 to 2: ") as caught:
        read_classes(write(tmp_path, entries))
    assert found in caught.value.what


def test_categories_of_coco_count_in_the_order_of_their_ids(tmp_path):
    """Ids that start at 1 and have gaps are numbered as in training code."""
    categories = [
        {"id": 90, "name": "toothbrush", "isthing": 1, "supercategory": "x"},
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 200, "name": "rug", "isthing": 0, "color": [1, 2, 3]},
    ]
    content = {"images": [], "annotations": [], "categories": categories}
    found = read_class_list(write(tmp_path, content))
    assert pairs(found.classes) == [(0, "person", True), (1, "toothbrush", True), (2, "rug", False)]
    assert found.classes[2].color == (1, 2, 3)
    assert "have the ids 1 to 200; they are numbered 0 to 2 in this order" in found.note
    for category in categories:
        del category["isthing"]
    assert all(info.thing for info in read_classes(write(tmp_path, content), "instance"))
    with pytest.raises(UsageError, match='has no "thing"'):
        read_classes(write(tmp_path, content), "panoptic")
    content["categories"] = [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}]
    assert read_class_list(write(tmp_path, content), "semantic").note == ""


@pytest.mark.parametrize(
    ("categories", "found"),
    [
        ([{"name": "a"}], "1 of 1 entries have no id"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "1 is used more than once"),
        ([{"id": "1", "name": "a"}], "not an integer"),
        ([5], "1 of 1 entries have no id"),
    ],
)
def test_categories_without_an_order(tmp_path, categories, found):
    with pytest.raises(UsageError, match="cannot be ordered") as caught:
        read_classes(write(tmp_path, {"categories": categories}), "semantic")
    assert found in caught.value.what


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sky-other-merged", "sky"),
        ("water-other", "water"),
        ("tree-merged", "tree"),
        ("door-stuff", "door"),
        ("wall-brick", "wall brick"),
        ("door, double door", "door"),
        ("screen;monitor", "screen"),
        ("traffic_light", "traffic light"),
        ("t-shirt", "t-shirt"),
        ("person", "person"),
        ("Straße", "Straße"),
        ("other", "other"),
        ("-stuff", "-stuff"),
        (",", ","),
        ("", ""),
    ],
)
def test_names_for_people(name, shown):
    assert display_name(name) == shown


def test_names_for_people_are_different():
    for name, classes in class_lists().items():
        shown = [display_name(info.name) for info in classes]
        assert len(set(shown)) == len(shown), name
        assert not [s for s in shown if "other" in s or "merged" in s or "stuff" in s], name
