"""Exact rewrites that move run-time arithmetic into the weights.

Each fold changes an :class:`EoMT` in place, in the precision of its weights, and leaves
its outputs equal. Call them on float64 weights and convert afterwards to lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eomt_deploy.network.eomt import EoMT, LayerScale


@torch.no_grad()
def fold_normalization(model: EoMT) -> None:
    """Fold ``(x / 255 - mean) / std`` into the patch embedding, which then takes 0-255.

    Exact at the border too: the convolution has no padding.
    """
    if not model.normalize:
        return
    conv = model.backbone.patch_embed.proj
    assert conv.bias is not None  # by construction in PatchEmbed
    weight = conv.weight / model.pixel_std
    conv.bias.sub_((weight * model.pixel_mean).sum(dim=(1, 2, 3)))
    conv.weight.copy_(weight / 255)
    model.normalize = False


@torch.no_grad()
def fold_layer_scale(model: EoMT) -> None:
    """Fold each LayerScale into the linear layer before it."""
    for block in model.backbone.layers:
        block.ls1 = _scaled_into(block.attn.proj, block.ls1)
        block.ls2 = _scaled_into(block.mlp.fc2, block.ls2)


def _scaled_into(linear: nn.Linear, scale: nn.Module) -> nn.Module:
    if isinstance(scale, LayerScale):
        gamma: Tensor = scale.gamma
        linear.weight.mul_(gamma[:, None])
        linear.bias.mul_(gamma)
    return nn.Identity()


@torch.no_grad()
def fold_attention_scale(model: EoMT) -> None:
    """Fold ``head_width ** -0.5`` into the query rows of the qkv projection."""
    for block in model.backbone.layers:
        attn = block.attn
        width = attn.proj.in_features
        attn.qkv.weight[:width].mul_(attn.scale)
        attn.qkv.bias[:width].mul_(attn.scale)
        attn.scale = 1.0


FOLDS: tuple[Callable[[EoMT], None], ...] = (
    fold_normalization,
    fold_layer_scale,
    fold_attention_scale,
)


def fold(model: EoMT) -> EoMT:
    """Apply every fold in float64, then return to the model's own precision."""
    dtype = model.q.weight.dtype
    model.double()
    for step in FOLDS:
        step(model)
    return model.to(dtype)
