"""DINOv3 checkpoints: names in the official files, and files that are only a difference.

DINOv3's own weights are gated, so the official EoMT files hold what training *added* to the
encoder. They are of no use alone: without the base weights every mask would be noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.checkpoints import files
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from eomt_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ROPE_THETA = 100.0
"""Base of the rotary embedding of every DINOv3 model."""
OFFICIAL_NORM_EPS = 1e-5
"""Of the official path; transformers' EomtDinov3Config says 1e-6, which gives other logits."""
OFFICIAL_MARKER = "backbone.patch_embed.cls_token"
UNUSED = ("embeddings.mask_token",)
"""In the base weights only: for training without labels."""
SMALL_MEAN = 0.01
"""A stored pixel mean below this is the difference of two equal ones; ImageNet's is 0.4."""
SMALL_NORM = 0.05
"""Trained LayerNorms multiply by more; what training added to one is less."""

# Official names (after `network.` and `encoder.`), and those of transformers' DINOv3 models, in
# the words of transformers' EomtDinov3ForUniversalSegmentation.
OFFICIAL = (
    (r"backbone\.patch_embed\.(cls_token|register_tokens|mask_token)", r"embeddings.\1"),
    (r"backbone\.patch_embed\.patch_embeddings\.(\w+)", r"embeddings.patch_embeddings.\1"),
    (r"backbone\.blocks\.(\d+)\.(.+)", r"layers.\1.\2"),
    (r"backbone\.norm\.(\w+)", r"layernorm.\1"),
)
BASE = (
    (r"(?:model\.)?layers?\.(\d+)\.(.+)", r"layers.\1.\2"),
    (r"norm\.(\w+)", r"layernorm.\1"),
)


def is_official(keys: Iterable[str]) -> bool:
    """Whether keys without the official prefixes are those of a DINOv3 encoder."""
    return OFFICIAL_MARKER in keys


def renamed(tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The same tensors, with the first rule that fits each name applied."""

    def name(key: str) -> str:
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(replacement)
        return key

    return {new: tensor for key, tensor in tensors.items() if (new := name(key)) not in UNUSED}


def is_delta(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an official file holds only what training added to the encoder.

    Its buffers were subtracted, too, so the stored pixel mean is about 0; where there is none, the
    LayerNorms tell.
    """
    if "pixel_mean" in tensors:
        return bool(tensors["pixel_mean"].float().abs().max() < SMALL_MEAN)
    norms = [v for k, v in tensors.items() if re.fullmatch(r"layers\.\d+\.norm1\.weight", k)]
    return bool(norms) and all(float(v.float().abs().mean()) < SMALL_NORM for v in norms)


def merge(
    delta: Mapping[str, Tensor], base_weights: Path | None, origin: Path
) -> tuple[dict[str, Tensor], list[Path]]:
    """Encoder of the base plus the difference; everything else as in the file.

    Args:
        delta: tensors in transformers' names.
        base_weights: folder or file of the DINOv3 model that was trained on; None where the user
            names none.
        origin: of the difference, for messages.

    Returns:
        whole tensors, and the files that the base was read from.

    Raises:
        CheckpointError: no base, or one of another shape.
    """
    import torch

    if base_weights is None:
        raise CheckpointError(
            f"{origin} holds only what training added to a DINOv3 encoder.",
            why="DINOv3's own weights are gated, so the official EoMT files leave them out; "
            "exported as it is the model would see nothing.",
            fix="Get access to the DINOv3 model it was trained on (L: facebook/"
            "dinov3-vitl16-pretrain-lvd1689m), and pass its folder, its model.safetensors or its "
            "name: --base-weights hf://facebook/dinov3-vitl16-pretrain-lvd1689m",
        )
    base, paths = _read_base(base_weights)
    ours = {k for k in delta if k.startswith(("embeddings.", "layers.", "layernorm."))}
    problems = [f"{k} is missing in the base" for k in sorted(ours - base.keys())]
    problems += [f"{k} is missing in the checkpoint" for k in sorted(base.keys() - ours)]
    problems += [
        f"{k} is {list(base[k].shape)} in the base, {list(delta[k].shape)} in the checkpoint"
        for k in sorted(ours & base.keys())
        if base[k].shape != delta[k].shape
    ]
    if problems:
        raise CheckpointError(
            f"{base_weights} is not the DINOv3 model that {origin.name} was trained on: "
            f"{len(problems)} tensors do not fit.",
            why="; ".join(problems[:3]) + ("; …" if len(problems) > 3 else ""),
            fix="Pass the base of the same size: S, B or L.",
        )
    buffers = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
    whole = {k: v + base[k] if k in ours else v for k, v in delta.items()}
    for name, values in buffers.items():
        if name in whole:
            whole[name] = whole[name] + torch.tensor(values).reshape(1, 3, 1, 1)
    return whole, paths


def _read_base(path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    if not path.exists():
        raise CheckpointError(f"There are no base weights at {path}.")
    paths = files.weight_files(path) if path.is_dir() else [path]
    stored: dict[str, Tensor] = {}
    for file in paths:
        stored |= files.read_tensors(file)
    found = renamed(stored, BASE)
    if "embeddings.cls_token" not in found:
        raise CheckpointError(
            f"{path} is no DINOv3 model of transformers: embeddings.cls_token is not there.",
            why=f"Its keys look like {', '.join(list(stored)[:3])}.",
            fix="Pass the folder or model.safetensors of facebook/dinov3-vit…-pretrain-lvd1689m.",
        )
    return found, paths
