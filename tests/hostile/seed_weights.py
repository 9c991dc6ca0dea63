"""Valid checkpoints that the fuzzers start from, in the formats of every trainer."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from eomt_deploy.architecture import Architecture

from .mutations import Files

ARCH = Architecture(
    width=16, depth=2, heads=1, mlp="gelu", mlp_hidden=16, registers=1, patch_size=16,
    num_queries=4, num_blocks=1, num_classes=3, num_upscale=1,
)  # fmt: skip
SIZE = (32, 32)


@cache
def weights() -> dict[str, Any]:
    """The state dict of a small network with our own names."""
    import torch

    from eomt_deploy.network.eomt import EoMT

    torch.manual_seed(0)
    model = EoMT(ARCH, SIZE).eval()
    return {key: torch.randn(value.shape) * 0.1 for key, value in model.state_dict().items()}


def official() -> dict[str, Any]:
    import torch

    inside = ("backbone.", "pixel_")
    state = {
        f"network.encoder.{k}" if k.startswith(inside) else f"network.{k}": v
        for k, v in weights().items()
    }
    return state | {
        "network.attn_mask_probs": torch.zeros(1),
        "criterion.empty_weight": torch.ones(4),
    }


def huggingface() -> dict[str, Any]:
    """The state dict with transformers' names, the inverse of our reader."""
    import torch

    found: dict[str, Any] = {"attn_mask_probs": torch.zeros(1)}
    plain = {
        "backbone.cls_token": "embeddings.cls_token",
        "backbone.reg_token": "embeddings.register_tokens",
        "q.weight": "query.weight",
    }
    parts = (
        ("backbone.patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("backbone.blocks", "layers"), ("attn.proj", "attention.out_proj"),
        ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"),
        ("backbone.norm", "layernorm"), ("class_head", "class_predictor"),
        ("mask_head.0", "mask_head.fc1"), ("mask_head.2", "mask_head.fc2"),
        ("mask_head.4", "mask_head.fc3"),
    )  # fmt: skip
    for key, value in weights().items():
        if key.startswith("pixel_"):
            continue
        if key == "backbone.pos_embed":
            found["embeddings.position_embeddings.weight"] = value[0].clone()
            continue
        name = plain.get(key, key)
        if name.startswith("upscale."):
            name = name.replace("upscale.", "upscale_block.block.").replace(
                ".norm.", ".layernorm2d."
            )
        for ours, theirs in parts:
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.{part}_proj")] = piece.clone()
        else:
            found[name] = value
    return found


def lightly() -> dict[str, Any]:
    import torch

    found = {}
    for key, value in weights().items():
        if key.startswith("pixel_"):
            continue
        name = key.replace("q.weight", "queries.weight") if key == "q.weight" else key
        name = name.replace("reg_token", "register_tokens")
        if key == "backbone.pos_embed":
            value = torch.cat([torch.zeros(1, 1, ARCH.width), value], dim=1)
        found[f"model.{name}"] = value
    arguments = {
        "image_size": SIZE, "image_normalize": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)},
        "num_queries": 4, "num_joint_blocks": 1,
        "thing_classes": {3: "cat"}, "stuff_classes": {7: "sky", 9: "grass"},
    }  # fmt: skip
    return {"model_class_path": "x.X", "model_init_args": arguments, "train_model": found}


def checkpoints() -> list[dict[str, Any]]:
    """Objects that training code passes to torch.save."""
    official_state = official()
    return [official_state, {"state_dict": official_state, "epoch": 3}, lightly(),
            {"model": huggingface()}]  # fmt: skip


CONFIG = {
    "model_type": "eomt", "num_attention_heads": 1, "layer_norm_eps": 1e-6, "image_size": 32,
    "id2label": {"0": "sky", "1": "grass", "2": "cat"}, "hidden_act": "gelu",
}  # fmt: skip


@cache
def huggingface_folders() -> list[Files]:
    from safetensors.torch import save

    state = {k: v.contiguous() for k, v in huggingface().items()}
    names = sorted(state)
    halves = (
        {n: state[n] for n in names[: len(names) // 2]},
        {n: state[n] for n in names[len(names) // 2 :]},
    )
    shards = {
        f"model-0000{i + 1}-of-00002.safetensors": save(half) for i, half in enumerate(halves)
    }
    place = {
        n: f"model-0000{i + 1}-of-00002.safetensors" for i, half in enumerate(halves) for n in half
    }
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": place}).encode()
    config = json.dumps(CONFIG).encode()
    return [
        {"config.json": config, "model.safetensors": save(state)},
        {"config.json": config, "model.safetensors.index.json": index, **shards},
    ]
