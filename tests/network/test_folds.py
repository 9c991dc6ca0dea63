from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
import torch

from eomt_deploy.network.eomt import LayerScale
from eomt_deploy.network.folds import (  # fmt: skip
    FOLDS,
    fold,
    fold_attention_scale,
    fold_layer_scale,
    fold_normalization,
)

ARCHITECTURES = {"gelu": tiny.ARCH, "swiglu": replace(tiny.ARCH, mlp="swiglu")}


@pytest.mark.parametrize("mlp", ARCHITECTURES)
@pytest.mark.parametrize("step", FOLDS, ids=lambda f: f.__name__)
def test_outputs_are_equal_in_float64(step, mlp):
    model = tiny.network(ARCHITECTURES[mlp]).double()
    folded = copy.deepcopy(model)
    step(folded)
    images = torch.randint(0, 256, (2, *tiny.SIZE, 3), dtype=torch.uint8)
    for before, after in zip(model(images), folded(images), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


def test_what_is_folded_is_gone():
    model = tiny.network()
    fold_normalization(model)
    assert not model.normalize
    fold_layer_scale(model)
    assert not any(isinstance(m, LayerScale) for m in model.modules())
    fold_attention_scale(model)
    assert all(block.attn.scale == 1.0 for block in model.backbone.layers)


def test_folding_twice_changes_nothing():
    once = fold(tiny.network())
    twice = fold(copy.deepcopy(once))
    for key, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[key]), key


def test_fold_keeps_the_precision_of_the_weights():
    assert fold(tiny.network()).q.weight.dtype == torch.float32
