from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
import torch

from eomt_deploy.network.eomt import LayerScale
from eomt_deploy.network.folds import (  # fmt: skip
    fold,
    fold_attention_scale,
    fold_layer_scale,
    fold_normalization,
    fold_smoothing,
    smoothable,
)


def every_block(step):
    def all_blocks(model):
        for block in model.backbone.layers:
            step(block)

    return all_blocks


FOLDS = {
    "normalization": fold_normalization,
    "layer_scale": every_block(fold_layer_scale),
    "attention_scale": every_block(fold_attention_scale),
    "all": fold,
}
ARCHITECTURES = {"gelu": tiny.ARCH, "swiglu": replace(tiny.ARCH, mlp="swiglu")}


@pytest.mark.parametrize("mlp", ARCHITECTURES)
@pytest.mark.parametrize("step", FOLDS)
def test_outputs_are_equal_in_float64(step, mlp):
    model = tiny.network(ARCHITECTURES[mlp]).double()
    folded = copy.deepcopy(model)
    FOLDS[step](folded)
    images = torch.randint(0, 256, (2, *tiny.SIZE, 3), dtype=torch.uint8)
    for before, after in zip(model(images), folded(images), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


def test_what_is_folded_is_gone():
    model = tiny.network()
    fold_normalization(model)
    assert not model.normalize
    for block in model.backbone.layers:
        fold_layer_scale(block)
    assert not any(isinstance(m, LayerScale) for m in model.modules())
    for block in model.backbone.layers:
        fold_attention_scale(block)
    assert all(block.attn.scale == 1.0 for block in model.backbone.layers)


def test_folding_twice_changes_nothing():
    once = fold(tiny.network())
    twice = fold(copy.deepcopy(once))
    for key, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[key]), key


def test_fold_keeps_the_precision_of_the_weights():
    assert fold(tiny.network()).q.weight.dtype == torch.float32


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_smoothing_is_exact(mlp):
    model = fold(tiny.network(replace(tiny.ARCH, mlp=mlp)))
    images = torch.from_numpy(tiny.images(2))
    wanted = [t.double() for t in model(images)]
    names = smoothable(model)
    assert any("fc2" in name for name in names) == (mlp == "swiglu")
    inputs: dict[str, float] = {}
    for name in names:
        layer = model.get_submodule(name)
        scales = torch.rand(layer.in_features) * 9 + 0.5
        before = largest_input(model, layer, images)
        fold_smoothing(model, name, scales)
        after = largest_input(model, layer, images)
        torch.testing.assert_close(after, before / scales, rtol=1e-3, atol=1e-5)
        inputs[name] = float(after.max())
    for found, want in zip(model(images), wanted, strict=True):
        assert (found - want).abs().max() < 1e-4 * want.abs().max()


def largest_input(model, layer, images):
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    return seen[0].abs().amax((0, 1))
