from __future__ import annotations

import json

import pytest

from eomt_deploy.classes import default_color, make_classes, read_classes
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
    ("text", "word"), [("{}", "not a list"), ("[", "not JSON"), ("[]", "empty")]
)
def test_files_that_are_no_list(tmp_path, text, word):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=word):
        read_classes(path)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_classes(tmp_path / "none.json")
