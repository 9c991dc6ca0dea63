from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from eomt_deploy.checkpoints import read_checkpoint, tensor_files
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting.network import build_network
from eomt_deploy.network.eomt import fused_attention


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("case", "heads"), [("semantic_64", 2), ("panoptic_96", None), ("instance_96", 2)]
)
def test_logits_of_the_official_code(shared, case, heads):
    folder = shared / "golden" / case
    checkpoint = read_checkpoint(folder / "pytorch_model.bin", heads=heads)
    with np.load(folder / "outputs.npz") as data:
        images = torch.from_numpy(data["transformed"].transpose(0, 2, 3, 1).copy())
        wanted = data["class_logits"], data["mask_logits"]
    model = build_network(checkpoint, tuple(images.shape[1:3]))
    with torch.inference_mode():
        found = model(images)
    for have, want in zip(found, wanted, strict=True):
        assert np.abs(have.numpy() - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (80, 48)])
def test_shapes_of_the_tensor_contract(files, size):
    model = build_network(read_checkpoint(files.checkpoint), size)
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    class_logits, mask_logits = model(images)
    assert class_logits.shape == (2, 12, 6)
    assert mask_logits.shape == (2, 12, size[0] // 4, size[1] // 4)
    assert not class_logits.requires_grad


def test_images_of_a_batch_do_not_touch_each_other():
    model = tiny.network()
    images = torch.randint(0, 256, (3, *tiny.SIZE, 3), dtype=torch.uint8)
    together = model(images)
    for index in range(3):
        alone = model(images[index : index + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[index], b[0], atol=1e-4, rtol=1e-4)


def test_no_registers_and_swiglu_load(tmp_path):
    arch = replace(tiny.ARCH, registers=0, mlp="swiglu")
    files = tiny.write(tmp_path, tiny.network(arch))
    checkpoint = read_checkpoint(files.checkpoint)
    assert checkpoint.architecture == arch
    assert build_network(checkpoint, (64, 64)).arch == arch


def test_a_checkpoint_is_opened_once_for_each_block(files, monkeypatch):
    """Also once to list the tensors, and once for those outside the blocks."""
    opened = []
    real = tensor_files._load_torch
    monkeypatch.setattr(tensor_files, "_load_torch", lambda path: opened.append(path) or real(path))
    build_network(read_checkpoint(files.checkpoint), tiny.SIZE)
    assert len(opened) == 2 + tiny.ARCH.depth


def test_bad_keys_are_all_listed_at_once(tmp_path):
    state = tiny.official_keys(tiny.network())
    del state["network.mask_head.2.weight"]
    state["network.surprise"] = torch.zeros(1)
    state["network.class_head.bias"] = torch.zeros(9)
    path = tmp_path / "bad.bin"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        build_network(read_checkpoint(path), (64, 64))
    text = str(caught.value)
    assert "missing (1): mask_head.2.weight" in text
    assert "unknown (1): surprise" in text
    assert "class_head.bias is [9], expected [6]" in text


def test_size_must_be_a_multiple_of_the_patch(files):
    checkpoint = read_checkpoint(files.checkpoint)
    with pytest.raises(UsageError, match=r"60x64(.|\n)*--size 64x64"):
        build_network(checkpoint, (60, 64))


def test_position_embeddings_that_are_no_square(tmp_path):
    files = tiny.write(tmp_path, tiny.network(size=(32, 96)))
    checkpoint = read_checkpoint(files.checkpoint)
    assert checkpoint.native_grid is None
    # Even if the number of patches is the same, as in 32x96 and 64x48.
    for size in ((64, 64), (32, 96), (64, 48)):
        with pytest.raises(UsageError, match="--native-size"):
            build_network(checkpoint, size)
    build_network(replace(checkpoint, native_grid=(2, 6)), (32, 96))


def test_weights_that_are_not_finite(tmp_path):
    model = tiny.network()
    model.mask_head[4].weight[0, 0] = float("nan")
    files = tiny.write(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"NaN or infinity: mask_head\.4\.weight"):
        build_network(read_checkpoint(files.checkpoint), (64, 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_of_half_precision_checkpoints_are_resampled_in_full(tmp_path, dtype):
    state = tiny.official_keys(tiny.network())
    key = "network.encoder.backbone.pos_embed"
    state[key] = state[key].to(dtype)
    files = tiny.write(tmp_path)
    torch.save(state, files.checkpoint)
    found = build_network(read_checkpoint(files.checkpoint), (96, 96)).backbone.pos_embed
    assert not torch.equal(found, found.to(dtype).float())


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_fused_attention_computes_the_same_and_leaves_no_trace(mlp):
    model = tiny.network(replace(tiny.ARCH, mlp=mlp))
    images = torch.from_numpy(tiny.images(2))
    with torch.inference_mode():
        wanted = model(images)
        with fused_attention(model):
            found = model(images)
            assert all(block.attn.fused for block in model.backbone.layers)
        again = model(images)
    for have, want, same in zip(found, wanted, again, strict=True):
        assert (have - want).abs().max() < 1e-5 * want.abs().max()
        assert torch.equal(want, same)
    with pytest.raises(ZeroDivisionError), fused_attention(model):
        raise ZeroDivisionError
    assert not any(block.attn.fused for block in model.backbone.layers)
