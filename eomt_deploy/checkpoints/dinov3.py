"""DINOv3 checkpoints: names in the official files, and files that contain only a difference.

The weights of DINOv3 are gated, so the official EoMT files contain only the *difference* that
training made to the encoder. They need the base weights: without them, every mask would be noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.checkpoints import folder, prefixes, tensor_files
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from eomt_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ROPE_THETA = 100.0
"""Base of the rotary embedding of all DINOv3 models."""
OFFICIAL_NORM_EPS = 1e-5
"""In the official code. EomtDinov3Config of transformers has 1e-6, which changes the logits."""
OFFICIAL_MARKER = "backbone.patch_embed.cls_token"
UNUSED = ("embeddings.mask_token",)
"""Exists only in the base weights, for self-supervised training."""
SMALL_MEAN = 0.01
"""A smaller pixel mean is a difference of two equal ones; that of ImageNet is above 0.4."""
SMALL_NORM = 0.05
"""LayerNorm weights are larger on average; the difference that training made is smaller."""

# Official names (after `network.` and `encoder.`), and names of transformers' DINOv3 models, each
# with the name in transformers' EomtDinov3ForUniversalSegmentation.
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
    """The tensors under new names: the first rule that matches a name is applied."""
    found = {_name(key, rules): tensor for key, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name not in UNUSED}


def _name(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key


_TELLING = re.compile(
    r"(?:.*\.)?(?:pixel_mean|layers\.\d+\.norm1\.weight|blocks\.\d+\.norm1\.weight)"
)


def marks_delta(key: str) -> bool:
    """Whether :func:`is_delta` uses a tensor of this name."""
    return bool(_TELLING.fullmatch(key))


def is_delta(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an official file contains only the difference to the base encoder.

    The difference includes buffers, so its pixel mean is about 0. If there is no pixel mean, the
    LayerNorm weights decide.
    """
    if "pixel_mean" in tensors:
        return bool((tensors["pixel_mean"].float().abs() < SMALL_MEAN).all())
    norms = [v for k, v in tensors.items() if k.startswith("layers.")]
    return bool(norms) and all(float(v.float().abs().mean()) < SMALL_NORM for v in norms)


@dataclass(frozen=True)
class Base:
    """The DINOv3 model that a difference is added to.

    Attributes:
        path: its folder or file.
        files: its weight files.
        names: names of its tensors in the files, by the name in transformers' EoMT.
    """

    path: Path
    files: tensor_files.WeightFiles
    names: Mapping[str, str]

    def check(self, delta: Mapping[str, Tensor], origin: Path) -> None:
        """Check that the base has the same tensors as the difference ``delta``.

        Raises:
            CheckpointError: tensors are missing or have another shape.
        """
        shapes = {name: self.files.shapes[stored] for name, stored in self.names.items()}
        ours = {name for name in delta if _is_encoder(name)}
        problems = [f"{k} is missing in the base" for k in sorted(ours - shapes.keys())]
        problems += [f"{k} is missing in the checkpoint" for k in sorted(shapes.keys() - ours)]
        problems += [
            f"{k} is {list(shapes[k].shape)} in the base, {list(delta[k].shape)} in the checkpoint"
            for k in sorted(ours & shapes.keys())
            if shapes[k].shape != delta[k].shape
        ]
        if problems:
            raise CheckpointError(
                f"{self.path} is not the DINOv3 model that {origin.name} was trained on: "
                f"{len(problems)} tensors do not match.",
                why="; ".join(problems[:3]) + ("; …" if len(problems) > 3 else ""),
                fix="Pass the base model of the same size: S, B or L.",
            )

    def added_to(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder of the base plus the difference; all other tensors unchanged."""
        import torch

        ours = [name for name in delta if _is_encoder(name)]
        if any(delta[name].is_meta for name in ours):
            base = self.files.shapes
        else:
            base = self.files.read(self.names[name] for name in ours)
        merged = dict(delta)
        for name in ours:
            merged[name] = delta[name] + base[self.names[name]]
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            if name in merged:
                mean = torch.tensor(values, device=merged[name].device)
                merged[name] = merged[name] + mean.reshape(1, 3, 1, 1)
        return merged


def _is_encoder(name: str) -> bool:
    return name.startswith(("embeddings.", "layers.", "layernorm."))


def open_base(path: Path | None, origin: Path) -> Base:
    """Open the base weights of a difference.

    Args:
        path: folder or file of the DINOv3 model that training started from; None if the user did
            not pass one.
        origin: path of the difference, for messages.

    Raises:
        CheckpointError: ``path`` is None, does not exist, or is not a DINOv3 model.
    """
    if path is None:
        raise CheckpointError(
            f"{origin} contains only the difference to the weights of a DINOv3 encoder.",
            why="The weights of DINOv3 are gated, so the official EoMT files do not include them. "
            "Without them, the results would be noise.",
            fix="Get access to the DINOv3 model that it was trained on (L: facebook/"
            "dinov3-vitl16-pretrain-lvd1689m), and pass its folder, its model.safetensors or its "
            "name: --base-weights hf://facebook/dinov3-vitl16-pretrain-lvd1689m",
        )
    if not path.exists():
        raise CheckpointError(
            f"There are no base weights at {path}.", fix="Correct the path in --base-weights."
        )
    stored = tensor_files.WeightFiles(folder.weight_files(path) if path.is_dir() else [path])
    lead = prefixes.lead_of(stored.shapes, r"embeddings\.cls_token")
    found = prefixes.below(stored.shapes, lead or "")[0]
    names = {_name(key, BASE): stored_name for key, stored_name in found.items()}
    names = {name: key for name, key in names.items() if name not in UNUSED}
    if "embeddings.cls_token" not in names:
        raise CheckpointError(
            f"{path} is not a DINOv3 model of transformers: embeddings.cls_token is missing.",
            why=f"Its first keys are {', '.join(list(stored.shapes)[:3])}.",
            fix="Pass the folder or model.safetensors of facebook/dinov3-vit…-pretrain-lvd1689m.",
        )
    return Base(path, stored, names)
