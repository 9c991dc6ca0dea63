"""The tiny network's weights in the layouts of other libraries."""

from __future__ import annotations

import torch
from torch import Tensor

from eomt_deploy.network.eomt import EoMT


def huggingface_keys(model: EoMT) -> dict[str, Tensor]:
    """The state dict with transformers' names: DINOv3's for rotary positions, else DINOv2's."""
    rotary = model.arch.rope_theta is not None
    patches = "embeddings.patch_embeddings." + "projection." * (not rotary)
    words = (
        ("backbone.cls_token", "embeddings.cls_token"),
        ("backbone.reg_token", "embeddings.register_tokens"),
        ("backbone.pos_embed", "embeddings.position_embeddings.weight"),
        ("backbone.patch_embed.proj.", patches),
        ("backbone.norm.", "layernorm."),
        ("backbone.blocks.", "layers."),
        (".attn.proj.", ".attention.o_proj." if rotary else ".attention.out_proj."),
        (".ls1.gamma", ".layer_scale1.lambda1"),
        (".ls2.gamma", ".layer_scale2.lambda1"),
        ("q.weight", "query.weight"),
        ("class_head.", "class_predictor."),
        ("mask_head.0.", "mask_head.fc1."),
        ("mask_head.2.", "mask_head.fc2."),
        ("mask_head.4.", "mask_head.fc3."),
    )
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("pixel_"):
            continue
        if key.startswith("upscale."):
            number, rest = key.split(".")[1:2][0], key.split(".", 2)[2]
            rest = rest.replace("norm.", "layernorm2d.")
            state[f"upscale_block.block.{number}.{rest}"] = value
            continue
        name = key
        for ours, theirs in words:
            if name.startswith(ours) or ours.startswith("."):
                name = name.replace(ours, theirs, 1)
        if rotary:
            name = name.replace(".mlp.fc1.", ".mlp.up_proj.").replace(
                ".mlp.fc2.", ".mlp.down_proj."
            )
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                if not (rotary and part == "k" and name.endswith("bias")):
                    state[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = third.clone()
            continue
        state[name] = value[0] if key == "backbone.pos_embed" else value
    state["attn_mask_probs"] = torch.zeros(model.arch.num_blocks)
    state["criterion.empty_weight"] = torch.ones(model.arch.num_classes + 1)
    return state


def lightly_keys(model: EoMT, *, chunks: bool = False) -> dict[str, Tensor]:
    """The weights as LightlyTrain exports them: the inverse of our reader."""
    rotary = model.arch.rope_theta is not None
    found = {}
    for key, value in model.state_dict().items():
        if key.startswith("pixel_"):
            continue
        if key == "backbone.pos_embed":
            first = torch.full((1, 1, model.arch.width), 0.25)
            value = torch.cat([first, value], dim=1)
            found["backbone.cls_token"] = model.backbone.cls_token - first
        if key == "backbone.cls_token" and key in found:
            continue
        key = key.replace("q.weight", "queries.weight") if key == "q.weight" else key
        key = key.replace("reg_token", "storage_tokens" if rotary else "register_tokens")
        if chunks and ".blocks." in key:
            number = int(key.split(".")[2])
            key = key.replace(f"blocks.{number}.", f"blocks.{number // 2}.{number}.")
        if model.arch.mlp == "swiglu" and ".mlp." in key:
            if rotary and ".fc1." in key:
                found[key.replace("fc1", "w1")], found[key.replace("fc1", "w2")] = value.chunk(2)
                continue
            key = key.replace("fc1", "w12").replace("fc2", "w3")
        if rotary and key.endswith("qkv.bias"):
            width = model.arch.width
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            found[f"{key}_mask"] = mask
            value[width : 2 * width] = 0  # ours have no bias there
            noise = torch.zeros_like(value)
            noise[width : 2 * width] = 5
            value = value + noise
        found[key] = value
    found["backbone.mask_token"] = torch.zeros(1, model.arch.width)
    if rotary:
        count = model.arch.width // model.arch.heads // 4
        found["backbone.rope_embed.periods"] = 100.0 ** (torch.arange(count) / count)
        found["backbone.local_cls_norm.weight"] = torch.ones(model.arch.width)
    return {f"model.{k}": v for k, v in found.items()} | {"criterion.weight": torch.ones(3)}
