"""LightlyTrain's layout, made from our own network by the inverse conversion."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from layouts import lightly_keys

from eomt_deploy.checkpoints import lightly, read_checkpoint
from eomt_deploy.errors import CheckpointError
from eomt_deploy.exporting import ExportConfig, describe, export
from eomt_deploy.exporting.network import build_network
from eomt_deploy.network.position import resample_position

CLASSES = [c["name"] for c in tiny.CLASSES]
THINGS = [c["name"] for c in tiny.CLASSES if c["thing"]]
STUFF = [c["name"] for c in tiny.CLASSES if not c["thing"]]
NORMALIZE = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
ARCH = replace(tiny.ARCH, upscale_norm_eps=1e-5)
ROTARY = replace(ARCH, norm_eps=1e-5, rope_theta=100.0)
SHALLOW = replace(ROTARY, depth=1, num_blocks=1)  # is traced in half of the time


def arguments(task="panoptic", **changes):
    ids = iter(range(3, 300, 7))
    if task == "panoptic":
        classes = {
            "thing_classes": {next(ids): name for name in THINGS},
            "stuff_classes": {next(ids): name for name in STUFF},
        }
    else:
        classes = {"classes": {next(ids): name for name in CLASSES}}
    if task == "semantic":
        classes["class_ignore_index"] = -100
    found = {
        "model_name": "dinov3/vits16-eomt", "image_size": tiny.SIZE, "image_normalize": NORMALIZE,
        "num_queries": ARCH.num_queries, "num_joint_blocks": ARCH.num_blocks, **classes,
    }  # fmt: skip
    return {k: v for k, v in (found | changes).items() if v is not None}


def network(arch, size=tiny.SIZE):
    model = tiny.network(arch, size)
    for name in ("mean", "std"):
        buffer = getattr(model, f"pixel_{name}")
        buffer.copy_(torch.tensor(NORMALIZE[name]).reshape(1, 3, 1, 1))
    return model


def write(folder, model, task="panoptic", chunks=False, **changes):
    path = folder / "exported_best.pt"
    content = {
        "model_class_path": "lightly_train._task_models.x.X",
        "model_init_args": arguments(task, **changes),
        "train_model": lightly_keys(model, chunks=chunks),
    }
    torch.save(content, path)
    return path


KINDS = {
    "dinov2": (ARCH, False),
    "dinov2 swiglu in chunks": (replace(ARCH, mlp="swiglu"), True),
    "dinov3": (ROTARY, False),
    "dinov3 swiglu": (replace(ROTARY, mlp="swiglu"), False),
    "patch 32, two steps": (replace(ROTARY, patch_size=32), False),
}


@pytest.mark.parametrize(("arch", "chunks"), KINDS.values(), ids=KINDS)
def test_same_network_as_ours(tmp_path, arch, chunks):
    model = network(arch)
    checkpoint = read_checkpoint(write(tmp_path, model, chunks=chunks), heads=arch.heads)
    assert checkpoint.architecture == arch
    assert checkpoint.task == "panoptic"
    found = build_network(checkpoint, tiny.SIZE)(torch.from_numpy(tiny.images(2)))
    for have, want in zip(found, model(torch.from_numpy(tiny.images(2))), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_the_file_alone_is_enough(tmp_path, task):
    """The file contains task, classes, sizes and normalisation."""
    path = write(tmp_path, network(SHALLOW), task, num_joint_blocks=1)
    report = export(ExportConfig(str(path), tmp_path / "m.onnx", heads=ROTARY.heads))
    spec = report.spec
    assert spec.task == task
    assert spec.image_size == tiny.SIZE
    things = {"semantic": [], "instance": CLASSES, "panoptic": THINGS}[task]
    assert sorted(c.name for c in spec.classes if c.thing) == sorted(things)
    if task == "panoptic":  # things come first in the logits
        assert [c.name for c in spec.classes] == THINGS + STUFF
    assert spec.provenance["source_format"] == "lightly-train DINOv3"
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(tiny.CLASSES))
    config = ExportConfig(str(path), tmp_path / "i.onnx", task="semantic", classes=classes)
    source, checkpoint = describe.find_source(config), read_checkpoint(path, heads=ROTARY.heads)
    other = describe.describe(config, source, checkpoint)
    notes = describe.warnings(config, source, checkpoint, other)
    assert any("was trained for" in note for note in notes) == (task != "semantic")


@pytest.mark.parametrize("registers", [0, 2])
def test_positions_are_resampled_as_dinov2_does(tmp_path, registers):
    arch = replace(ARCH, registers=registers)
    model = network(arch)
    checkpoint = read_checkpoint(write(tmp_path, model, image_size=(96, 64)), heads=arch.heads)
    assert checkpoint.native_grid == (4, 4)
    assert checkpoint.trained_size == (96, 64)
    grid = model.backbone.pos_embed.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    if registers:
        wanted = F.interpolate(grid, size=(6, 4), mode="bicubic", antialias=True)
    else:
        wanted = F.interpolate(grid, scale_factor=(6.1 / 4, 4.1 / 4), mode="bicubic")
    found = build_network(checkpoint, (96, 64)).backbone.pos_embed
    np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6)


def test_resampling_gives_the_requested_size():
    for new in range(1, 60):
        found = resample_position(torch.zeros(1, 37 * 37, 4), (37, 37), (new, 37 + new), offset=0.1)
        assert found.shape == (1, new * (37 + new), 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": None},
        {"image_size": 64},
        {"image_size": (0, 64)},
        {"image_size": (float("inf"), 64)},
        {"image_normalize": {"mean": (0.5, 0.5, 0.5), "std": (0.0, 0.5, 0.5)}},
        {"thing_classes": None, "stuff_classes": None},
        {"stuff_classes": None},
        {"num_joint_blocks": "many"},
        {"image_normalize": {"mean": (0.5,), "std": (0.5,)}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_damaged_description_is_reported(tmp_path, changes):
    path = write(tmp_path, network(ROTARY), **changes)
    with pytest.raises(CheckpointError, match="model_init_args"):
        read_checkpoint(path, heads=ROTARY.heads)


def test_weights_without_their_description_are_reported(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(lightly_keys(network(ROTARY)), path)
    with pytest.raises(CheckpointError, match=r"exported_best\.pt"):
        read_checkpoint(path)


def test_contradictions_are_reported(tmp_path):
    path = write(tmp_path, network(ROTARY))
    with pytest.raises(CheckpointError, match="--num-blocks 1 contradicts"):
        read_checkpoint(path, heads=ROTARY.heads, num_blocks=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 8, 16])
def test_base_of_the_rotation(dtype, count):
    assert lightly.rope_theta((100.0 ** (torch.arange(count) / count)).to(dtype)) == 100


@pytest.mark.parametrize(
    "periods",
    [
        torch.linspace(1, 40, 16),
        torch.ones(1),
        torch.tensor(3.0),
        torch.arange(1, 9),
        -torch.ones(4),
        torch.full((4,), float("nan")),
    ],
)
def test_other_rotations_are_refused(periods):
    with pytest.raises(CheckpointError, match="one base"):
        lightly.rope_theta(periods)


@pytest.mark.parametrize(
    ("end", "change"),
    [
        ("blocks.1.attn.qkv.bias", None),
        ("blocks.1.mlp.w2.weight", None),
        ("backbone.cls_token", None),
        ("blocks.0.mlp.w2.weight", lambda t: t[:, :3]),
        ("qkv.bias_mask", lambda t: t[:5]),
        ("rope_embed.periods", lambda t: t[:1]),
    ],
)
def test_tensors_that_do_not_fit_are_reported(tmp_path, end, change):
    path = write(tmp_path, network(replace(ROTARY, mlp="swiglu")))
    content = torch.load(path)
    weights = content["train_model"]
    for key in [k for k in weights if k.endswith(end)]:
        value = weights.pop(key)
        if change:
            weights[key] = change(value)
    torch.save(content, path)
    with pytest.raises(CheckpointError):
        build_network(read_checkpoint(path, heads=ROTARY.heads), tiny.SIZE)
