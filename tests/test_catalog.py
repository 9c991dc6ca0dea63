from __future__ import annotations

import json

import pytest
import torch

from eomt_deploy import catalog, licences
from eomt_deploy.architecture import Architecture
from eomt_deploy.benchmarking.paper.ladder import BACKBONES
from eomt_deploy.benchmarking.stages import stage_settings
from eomt_deploy.errors import UsageError
from eomt_deploy.network.eomt import EoMT


@pytest.mark.parametrize("entry", catalog.checkpoints().values(), ids=lambda e: e.name)
def test_every_entry_is_usable(entry):
    classes = entry.class_list()
    assert len({c.name for c in classes}) == len(classes)
    assert all(side % 16 == 0 for side in entry.size)
    if entry.task == "instance":
        assert all(c.thing for c in classes)
    for weights in (entry.weights, entry.base_weights):
        assert "@" in weights or not weights.startswith("hf://")
    if "://" not in entry.weights:
        assert (catalog.folder("export") / entry.weights).is_file()


def test_class_counts_of_the_data_sets():
    lists = {e.classes: e.class_list() for e in catalog.checkpoints().values()}
    assert len(lists["coco_panoptic"]) == 133
    assert sum(c.thing for c in lists["coco_panoptic"]) == 80
    assert len(lists["coco_instance"]) == 80
    assert len(lists["cityscapes"]) == 19
    assert len(lists["ade20k"]) == 150
    assert sum(c.thing for c in lists["ade20k"]) == 100


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
    for revision in ("", "@main", "@refs/pr/1", "@0123456789abcdef"):
        entry = catalog.match_weights(f"hf://tue-mps/coco_panoptic_eomt_large_640{revision}")
        assert entry is not None
        assert entry.name == "coco-panoptic-eomt-large-640"
    assert catalog.match_weights("hf://nobody/nothing") is None


def test_stages_measure_something():
    settings = stage_settings()
    assert settings.stages
    assert settings.iterations >= 10


SIZES = {"S": "small", "B": "base", "L": "large", "g": "giant"}
# Facts that are not in the catalog: width, depth, heads, MLP width, MLP type, last blocks.
OTHERS = {
    "T": (192, 12, 3, 768, "gelu", 3),
    "T+": (192, 12, 3, 1152, "gelu", 3),
    "7B": (4096, 32, 32, 10928, "swiglu", 5),
}
LIGHTLY = {"T": 6.0, "T+": 7.7, "S": 23.4, "B": 92.5, "L": 315.1}
"""Published parameters of LightlyTrain's models in millions, with 133 classes and patch 16."""


@pytest.mark.parametrize(
    "entry",
    [e for e in catalog.checkpoints().values() if e.backbone.startswith("DINO")],
    ids=lambda e: e.name,
)
def test_parameters_are_those_of_the_network(entry):
    """The network is built on the meta device, with its own size, queries and classes."""
    family, size = entry.backbone.split("-")
    size, _, patch = size.partition("/")
    if size in SIZES:
        dims = BACKBONES[SIZES[size]]
        numbers = (dims.width, dims.depth, dims.heads, dims.mlp_hidden, dims.mlp, dims.blocks)
    else:
        numbers = OTHERS[size]
    width, depth, heads, hidden, mlp, blocks = numbers
    arch = Architecture(
        width=width, depth=depth, heads=heads, mlp=mlp, mlp_hidden=hidden, registers=4,
        patch_size=int(patch or 16), num_queries=entry.queries, num_blocks=blocks,
        num_classes=len(entry.class_list()), num_upscale=2,
        rope_theta=100.0 if family == "DINOv3" else None,
    )  # fmt: skip
    with torch.device("meta"):
        network = EoMT(arch, entry.size)
    found = sum(p.numel() for p in network.parameters())
    assert found == pytest.approx(entry.parameters, rel=0.01)
    lightly = entry.name.endswith("-lightly")
    assert bool(entry.base_weights) == (family == "DINOv3" and not lightly)
    assert ("#sha256=" in entry.weights) == lightly
    if lightly and not patch:
        assert found / 1e6 == pytest.approx(LIGHTLY[size], rel=0.01)


def test_coco_stuff_has_the_things_of_coco():
    stuff = next(e for e in catalog.checkpoints().values() if e.dataset == "COCO-Stuff")
    classes = stuff.class_list()
    things = catalog.find_checkpoint("coco-instance-eomt-large-640").class_list()
    assert len(classes) == 171
    assert [c.name for c in classes if c.thing] == [c.name for c in things]
    assert len({c.name for c in classes}) == 171


def test_both_orders_of_ade20k():
    lists = catalog.class_lists()
    usual, things_first = lists["ade20k"], lists["ade20k_things_first"]
    facts = [{(c.name, c.thing, c.color) for c in order} for order in (usual, things_first)]
    assert facts[0] == facts[1]
    assert [c.thing for c in things_first] == [True] * 100 + [False] * 50
    assert [c.name for c in usual[:4]] == ["wall", "building", "sky", "floor"]
    for thing in (True, False):  # the order within things and within stuff is the usual one
        names = [[c.name for c in order if c.thing == thing] for order in (usual, things_first)]
        assert names[0] == names[1]


def test_licences_of_a_checkpoint_and_its_base_weights():
    own = catalog.find_checkpoint("eomt-tiny-scenes")
    assert licences.notes(own.name, own.licences) == []
    lightly = catalog.find_checkpoint("coco-instance-eomt-small-640-lightly")
    assert licences.short(lightly.licences) == "AGPL-3.0 + DINOv3"
    agpl, dinov3 = licences.notes(lightly.name, lightly.licences)
    assert "AGPL-3.0 or commercial" in agpl
    assert licences.LINKS[licences.AGPL] in agpl
    assert licences.LINKS[licences.DINOV3] in dinov3
    official = catalog.find_checkpoint("coco-instance-eomt-large-640-dinov3")
    assert official.licences == ["MIT", "DINOv3 License"]
    assert len(licences.notes(official.name, official.licences)) == 1


def test_an_unknown_licence_is_a_warning():
    (note,) = licences.notes("mine", licences.parts("CC-BY-NC-4.0"))
    assert "Licence of mine: CC-BY-NC-4.0. It may restrict use" in note
