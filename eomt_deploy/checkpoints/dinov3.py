"""DINOv3 checkpoints: names in the official files, and files that are only a difference.

DINOv3's own weights are gated, so the official EoMT files hold what training *added* to the
encoder. They are of no use alone: without the base weights every mask would be noise.
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


def tells_delta(key: str) -> bool:
    """Whether :func:`is_delta` looks at a tensor of this name."""
    return bool(_TELLING.fullmatch(key))


def is_delta(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an official file holds only what training added to the encoder.

    Its buffers were subtracted, too, so the stored pixel mean is about 0; where there is none, the
    LayerNorms tell.
    """
    if "pixel_mean" in tensors:
        return bool((tensors["pixel_mean"].float().abs() < SMALL_MEAN).all())
    norms = [v for k, v in tensors.items() if k.startswith("layers.")]
    return bool(norms) and all(float(v.float().abs().mean()) < SMALL_NORM for v in norms)


@dataclass(frozen=True)
class Base:
    """The DINOv3 model that a difference is added to.

    Attributes:
        names: of its tensors in the files, by transformers' names of EoMT.
    """

    path: Path
    files: tensor_files.WeightFiles
    names: Mapping[str, str]

    def check(self, delta: Mapping[str, Tensor], origin: Path) -> None:
        """Refuse a base of another shape.

        Raises:
            CheckpointError: tensors are missing or mis-shaped.
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
                f"{len(problems)} tensors do not fit.",
                why="; ".join(problems[:3]) + ("; …" if len(problems) > 3 else ""),
                fix="Pass the base of the same size: S, B or L.",
            )

    def added_to(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encoder of the base plus the difference; everything else as in the file."""
        import torch

        ours = [name for name in delta if _is_encoder(name)]
        if any(delta[name].is_meta for name in ours):
            base = self.files.shapes
        else:
            base = self.files.read(self.names[name] for name in ours)
        whole = dict(delta)
        for name in ours:
            whole[name] = delta[name] + base[self.names[name]]
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            if name in whole:
                mean = torch.tensor(values, device=whole[name].device)
                whole[name] = whole[name] + mean.reshape(1, 3, 1, 1)
        return whole


def _is_encoder(name: str) -> bool:
    return name.startswith(("embeddings.", "layers.", "layernorm."))


def open_base(path: Path | None, origin: Path) -> Base:
    """The base weights of a difference.

    Args:
        path: folder or file of the DINOv3 model that was trained on; None where the user names
            none.
        origin: of the difference, for messages.

    Raises:
        CheckpointError: none named, none there, or no DINOv3 model.
    """
    if path is None:
        raise CheckpointError(
            f"{origin} holds only what training added to a DINOv3 encoder.",
            why="DINOv3's own weights are gated, so the official EoMT files leave them out; "
            "exported as it is the model would see nothing.",
            fix="Get access to the DINOv3 model it was trained on (L: facebook/"
            "dinov3-vitl16-pretrain-lvd1689m), and pass its folder, its model.safetensors or its "
            "name: --base-weights hf://facebook/dinov3-vitl16-pretrain-lvd1689m",
        )
    if not path.exists():
        raise CheckpointError(f"There are no base weights at {path}.")
    stored = tensor_files.WeightFiles(folder.weight_files(path) if path.is_dir() else [path])
    lead = prefixes.lead_of(stored.shapes, r"embeddings\.cls_token")
    found = prefixes.below(stored.shapes, lead or "")[0]
    names = {_name(key, BASE): stored_name for key, stored_name in found.items()}
    names = {name: key for name, key in names.items() if name not in UNUSED}
    if "embeddings.cls_token" not in names:
        raise CheckpointError(
            f"{path} is no DINOv3 model of transformers: embeddings.cls_token is not there.",
            why=f"Its keys look like {', '.join(list(stored.shapes)[:3])}.",
            fix="Pass the folder or model.safetensors of facebook/dinov3-vit…-pretrain-lvd1689m.",
        )
    return Base(path, stored, names)
