from __future__ import annotations

import pytest
import tomllib

from eomt_deploy import catalog

KNOWN = {
    "cityscapes": {"road": (128, 64, 128), "sky": (70, 130, 180), "car": (0, 0, 142)},
    "camvid": {"road": (128, 64, 128), "sky": (128, 128, 128), "car": (64, 0, 128)},
    "ade20k": {"wall": (120, 120, 120), "sky": (6, 230, 230), "person": (150, 5, 61)},
    "coco_panoptic": {
        "person": (220, 20, 60),
        "road": (128, 64, 128),
        "rug-merged": (250, 141, 255),
    },
    "coco_instance": {"person": (220, 20, 60), "toothbrush": (191, 162, 208)},
}
"""A few colours of each data set, from its first, middle and last classes."""


@pytest.mark.parametrize("name", KNOWN)
def test_classes_have_the_colours_of_their_data_set(name):
    colours = {info.name: info.color for info in catalog.class_lists()[name]}
    assert {key: colours[key] for key in KNOWN[name]} == KNOWN[name]


def test_every_class_of_a_list_has_a_colour():
    for path in sorted((catalog.folder("export") / "classes").glob("*.toml")):
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["classes"]
        assert all("color" in entry for entry in entries), path


def test_coco_colours_are_distinct_and_shared_by_both_tasks():
    panoptic = {info.name: info.color for info in catalog.class_lists()["coco_panoptic"]}
    instance = {info.name: info.color for info in catalog.class_lists()["coco_instance"]}
    assert len(set(panoptic.values())) == len(panoptic)
    assert instance == {name: panoptic[name] for name in instance}
