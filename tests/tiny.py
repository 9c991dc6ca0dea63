"""Tiny EoMT checkpoints with random weights, which are created quickly."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eomt_deploy.architecture import Architecture
from eomt_deploy.classes import make_classes
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec, Task

ARCH = Architecture(
    width=64,
    depth=3,
    heads=1,
    mlp="gelu",
    mlp_hidden=96,
    registers=2,
    patch_size=16,
    num_queries=12,
    num_blocks=2,
    num_classes=5,
    num_upscale=2,
)
_SHALLOW = replace(ARCH, depth=2, num_blocks=1)
SHALLOW = {
    "dinov2 giant": replace(_SHALLOW, heads=4, mlp="swiglu"),
    "dinov3": replace(_SHALLOW, heads=4, rope_theta=100.0, norm_eps=1e-5),
    "dinov3 gated, patch 32": replace(_SHALLOW, rope_theta=100.0, mlp="swiglu", patch_size=32),
}
"""Other families, with one block before the queries join and one after. Several tests use them,
since each new structure takes seconds to trace."""
SIZE = (64, 64)
CLASSES = [
    {"name": "sky", "thing": False},
    {"name": "grass", "thing": False, "color": [10, 200, 30]},
    {"name": "cat", "thing": True},
    {"name": "dog", "thing": True},
    {"name": "car", "thing": True},
]


@dataclass(frozen=True)
class Files:
    checkpoint: Path
    classes: Path


def network(arch: Architecture = ARCH, size: tuple[int, int] = SIZE, seed: int = 0) -> EoMT:
    """A network with random weights that predicts confident classes and structured masks."""
    torch.manual_seed(seed)
    model = EoMT(arch, size).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            elif name.endswith("norm.weight") or ".norm" in name:
                value.uniform_(0.5, 1.5)
            elif "gamma" in name:
                value.uniform_(0.1, 1)
            else:
                value.normal_(std=0.1)
        model.class_head.weight.mul_(12)
        model.pixel_mean.copy_(torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        model.pixel_std.copy_(torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))
    return model.requires_grad_(False)


def official_keys(model: EoMT) -> dict[str, Tensor]:
    """The state dict as the official code saves it."""
    in_encoder = ("backbone.", "pixel_")
    state = {
        f"network.encoder.{key}" if key.startswith(in_encoder) else f"network.{key}": value
        for key, value in model.state_dict().items()
    }
    state["network.attn_mask_probs"] = torch.zeros(model.arch.num_blocks)
    state["criterion.empty_weight"] = torch.ones(model.arch.num_classes + 1)
    return state


def files(folder: Path) -> Files:
    """The files that :func:`write` creates."""
    return Files(folder / "tiny.bin", folder / "classes.json")


def write(folder: Path, model: EoMT | None = None) -> Files:
    """Write checkpoint and class list to ``folder``."""
    made = files(folder)
    torch.save(official_keys(model or network()), made.checkpoint)
    made.classes.write_text(json.dumps(CLASSES))
    return made


def spec(task: Task = "panoptic", precision: str = "fp32", batch: int | None = None) -> ModelSpec:
    """The description of the tiny network."""
    return ModelSpec(
        name="tiny",
        task=task,
        image_size=SIZE,
        patch_size=ARCH.patch_size,
        num_queries=ARCH.num_queries,
        num_blocks=ARCH.num_blocks,
        num_upscale=ARCH.num_upscale,
        classes=make_classes(CLASSES, "tiny"),
        resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task],
        backbone=Backbone("dinov2", ARCH.width, ARCH.depth, ARCH.heads, ARCH.mlp, 2, 0),
        precision=precision,
        batch=batch,
        provenance={"eomt_deploy": "0.1.0"},
    )


def images(count: int = 4) -> np.ndarray:
    """Network inputs with structure, uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.repeat(np.repeat(coarse, SIZE[0] // 8, 1), SIZE[1] // 8, 2)


def overflowing() -> EoMT:
    """An equivalent network in FP32 whose activations exceed the FP16 range in block 1."""
    model = network()
    block = model.backbone.layers[1]
    with torch.no_grad():
        block.attn.qkv.weight[-ARCH.width :] *= 1e5
        block.attn.qkv.bias[-ARCH.width :] *= 1e5
        block.attn.proj.weight /= 1e5
    return model
