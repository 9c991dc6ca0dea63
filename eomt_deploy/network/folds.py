"""Folds: exact rewrites that move arithmetic of the forward pass into the weights.

Each fold changes an :class:`EoMT`, or one of its blocks, in place and does not change the outputs.
It computes in float64, one tensor at a time, so that results are rounded only once and the model is
not copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eomt_deploy.network.eomt import Block, EoMT, LayerScale


@torch.no_grad()
def fold_normalization(model: EoMT) -> None:
    """Fold ``(x / 255 - mean) / std`` into the patch embedding, which then takes values 0-255.

    This is also exact at the border, because the convolution has no padding.
    """
    if not model.normalize:
        return
    conv = model.backbone.patch_embed.proj
    assert conv.bias is not None  # by construction in PatchEmbed
    weight = conv.weight.double() / model.pixel_std.double()
    conv.bias.copy_(conv.bias.double() - (weight * model.pixel_mean.double()).sum(dim=(1, 2, 3)))
    conv.weight.copy_(weight / 255)
    model.normalize = False


@torch.no_grad()
def fold_layer_scale(block: Block) -> None:
    """Fold each LayerScale into the linear layer before it."""
    block.ls1 = _scaled_into(block.attn.proj, block.ls1)
    block.ls2 = _scaled_into(block.mlp.fc2, block.ls2)


def _scaled_into(linear: nn.Linear, scale: nn.Module) -> nn.Module:
    if isinstance(scale, LayerScale):
        gamma: Tensor = scale.gamma.double()
        linear.weight.copy_(linear.weight.double() * gamma[:, None])
        linear.bias.copy_(linear.bias.double() * gamma)
    return nn.Identity()


@torch.no_grad()
def fold_attention_scale(block: Block) -> None:
    """Fold ``head_width ** -0.5`` into the query rows of the qkv projection."""
    attn = block.attn
    width = attn.proj.in_features
    for parameter in (attn.qkv.weight, attn.qkv.bias):
        parameter[:width].copy_(parameter[:width].double() * attn.scale)
    attn.scale = 1.0


def fold_block(block: Block) -> None:
    """Apply all folds of a transformer block."""
    fold_layer_scale(block)
    fold_attention_scale(block)


@torch.no_grad()
def fold_smoothing(model: EoMT, layer: str, scales: Tensor) -> None:
    """Divide the input channels of a linear layer by ``scales``, without changing its outputs.

    The weights that produce the inputs are divided, and the columns of the layer are multiplied.

    Args:
        model: folded network, changed in place.
        layer: module name of the layer, one of :func:`smoothable`.
        scales: positive, [D].
    """
    index, part = layer.removeprefix("backbone.blocks.").split(".", 1)
    block = model.backbone.layers[int(index)]
    parts: dict[str, tuple[nn.Linear, list[Tensor]]] = {
        "attn.qkv": (block.attn.qkv, [block.norm1.weight, block.norm1.bias]),
        # Attention mixes tokens, not channels: channels of the values reach the projection.
        "attn.proj": (block.attn.proj, _last_rows(block.attn.qkv, len(scales))),
        "mlp.fc1": (block.mlp.fc1, [block.norm2.weight, block.norm2.bias]),
        # SwiGLU: the value is only multiplied by the gate.
        "mlp.fc2": (block.mlp.fc2, _last_rows(block.mlp.fc1, len(scales))),
    }
    linear, makers = parts[part]
    scales = scales.double()
    linear.weight.copy_(linear.weight.double() * scales)
    for maker in makers:
        maker.copy_(maker.double() / (scales if maker.ndim == 1 else scales[:, None]))


def _last_rows(linear: nn.Linear, count: int) -> list[Tensor]:
    return [linear.weight[-count:], linear.bias[-count:]]


def smoothable(model: EoMT) -> list[str]:
    """The linear layers that :func:`fold_smoothing` supports: all except those after GELU."""
    parts = ["attn.qkv", "attn.proj", "mlp.fc1"]
    if model.arch.mlp == "swiglu":
        parts.append("mlp.fc2")
    return [f"backbone.blocks.{i}.{part}" for i in range(model.arch.depth) for part in parts]


def fold(model: EoMT) -> EoMT:
    """Apply all folds in place, and return the model."""
    fold_normalization(model)
    for block in model.backbone.layers:
        fold_block(block)
    return model
