from __future__ import annotations

import json

import pytest

from eomt_deploy import catalog
from eomt_deploy.engines import BACKENDS
from eomt_deploy.errors import UsageError


@pytest.mark.parametrize("entry", catalog.checkpoints().values(), ids=lambda e: e.name)
def test_every_entry_is_usable(entry):
    classes = entry.class_list()
    assert len({c.name for c in classes}) == len(classes)
    assert all(side % 16 == 0 for side in entry.size)
    if entry.task == "instance":
        assert all(c.thing for c in classes)
    if "://" not in entry.weights:
        assert (catalog.folder("export") / entry.weights).is_file()


def test_class_counts_of_the_data_sets():
    lists = {e.classes: e.class_list() for e in catalog.checkpoints().values()}
    assert len(lists["coco_panoptic"]) == 133
    assert sum(c.thing for c in lists["coco_panoptic"]) == 80
    assert len(lists["coco_instance"]) == 80
    assert len(lists["cityscapes"]) == 19


@pytest.mark.shared_data
def test_coco_classes_are_those_of_the_data_set(shared):
    data = json.loads((shared / "data/coco_panoptic_100/panoptic.json").read_text())
    ours = catalog.find_checkpoint("coco-panoptic-eomt-large-640").class_list()
    theirs = [(c["name"], bool(c["isthing"])) for c in data["categories"]]
    assert [(c.name, c.thing) for c in ours] == theirs


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="coco-panoptic-eomt-large-640"):
        catalog.find_checkpoint("coco_panoptic_eomt_large_640")


def test_hub_name_finds_its_entry():
    entry = catalog.match_weights("hf://tue-mps/coco_panoptic_eomt_large_640")
    assert entry is not None
    assert entry.name == "coco-panoptic-eomt-large-640"
    assert catalog.match_weights("hf://nobody/nothing") is None


def test_profiles_name_backends_and_devices_that_exist():
    for profile in catalog.engine_profiles().values():
        assert profile.device in BACKENDS[profile.backend].devices


def test_plans_measure_something():
    for plan in catalog.benchmark_plans().values():
        assert plan.stages
        assert plan.iterations >= 10
