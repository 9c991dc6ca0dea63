"""One door for every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from eomt_deploy.architecture import Architecture
from eomt_deploy.checkpoints import dinov3, files, huggingface, official, shapes
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from eomt_deploy.errors import CheckpointError


def read_checkpoint(
    path: str | Path,
    *,
    heads: int | None = None,
    num_blocks: int | None = None,
    base_weights: str | Path | None = None,
) -> Checkpoint:
    """Read a trained EoMT; the layout is recognised by its keys, not its name.

    Args:
        path: official ``.bin``/``.pt``/``.ckpt``, ``.safetensors``, a Hugging Face model
            folder, or ``hf://owner/name``.
        heads: attention heads, where neither width / 64 nor config.json tells.
        num_blocks: blocks that see the queries, where ``attn_mask_probs`` is absent.
        base_weights: DINOv3 model that a difference is added to, as file, folder or ``hf://``, see
            :mod:`eomt_deploy.checkpoints.dinov3`.

    Raises:
        CheckpointError: nothing there, damaged, with code inside, not an EoMT, or a difference
            without its base.
        MissingDependencyError: ``hf://`` without huggingface-hub.
    """
    path = _local(path)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    config = huggingface.read_config(path) if path.is_dir() else None
    weights = files.weight_files(path) if path.is_dir() else [path]
    stored: dict[str, torch.Tensor] = {}
    for file in weights:
        stored |= files.read_tensors(file)
    layout, tensors, bases = _canonical(stored, path, base_weights)
    rotary = "backbone.pos_embed" not in tensors and layout in ROTARY_EPS

    mask_probs = tensors.pop("attn_mask_probs", None)
    if mask_probs is not None and num_blocks not in (None, mask_probs.numel()):
        raise CheckpointError(
            f"--num-blocks {num_blocks} contradicts the checkpoint, whose attn_mask_probs has "
            f"{mask_probs.numel()} entries.",
            fix="Leave --num-blocks out.",
        )
    eps = ROTARY_EPS[layout] if rotary else 1e-6
    theta = (config and config.rope_theta) or dinov3.ROPE_THETA
    architecture = shapes.read_architecture(
        tensors,
        num_blocks=num_blocks if mask_probs is None else mask_probs.numel(),
        heads=heads or (config.heads if config else None),
        norm_eps=config.norm_eps if config else eps,
        rope_theta=theta if rotary else None,
    )
    tensors.setdefault("pixel_mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
    tensors.setdefault("pixel_std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
    return Checkpoint(
        tensors=tensors,
        architecture=architecture,
        native_grid=_native_grid(tensors, architecture, config),
        attn_mask_probs=None if mask_probs is None else tuple(mask_probs.float().tolist()),
        class_names=config.class_names if config else None,
        source_format=layout,
        sha256=files.sha256([*weights, *bases]),
    )


ROTARY_EPS = {
    "huggingface DINOv3": 1e-6,  # transformers' default, where config.json is silent
    "official DINOv3": dinov3.OFFICIAL_NORM_EPS,
    "official DINOv3 difference": dinov3.OFFICIAL_NORM_EPS,
}
"""LayerNorm epsilon of layouts with rotary positions: it belongs to where the weights come from."""


def _local(path: str | Path) -> Path:
    """The path itself, or the folder that ``hf://owner/name`` was downloaded to."""
    text = str(path)
    if text.startswith(huggingface.HUB_PREFIX):
        return huggingface.download(text.removeprefix(huggingface.HUB_PREFIX))
    return Path(path)


def _canonical(
    stored: dict[str, torch.Tensor], path: Path, base_weights: str | Path | None
) -> tuple[str, dict[str, torch.Tensor], list[Path]]:
    """Name of the layout, tensors in our own, and the files of the base weights."""
    if huggingface.recognises(stored):
        layout = "huggingface" + " DINOv3" * huggingface.is_dinov3(stored)
        tensors = huggingface.canonical(stored)
    elif official.recognises(stored):
        layout, tensors = "official", official.canonical(stored)
    else:
        raise CheckpointError(
            f"{path} holds tensors, but no EoMT: neither the official keys (network.…) nor "
            f"Hugging Face's ({huggingface.MARKER}) are there.",
            why=f"Its keys look like {', '.join(list(stored)[:3])}.",
            fix="Pass the checkpoint of a trained EoMT, not of a backbone or another network.",
        )
    bases: list[Path] = []
    if layout == "official" and dinov3.is_official(tensors):
        layout = "official DINOv3"
        named = dinov3.renamed(tensors, dinov3.OFFICIAL)
        if dinov3.is_delta(named):
            layout = "official DINOv3 difference"
            base = None if base_weights is None else _local(base_weights)
            named, bases = dinov3.merge(named, base, path)
        tensors = huggingface.canonical(named)
    if base_weights is not None and not bases:
        raise CheckpointError(
            f"{path} holds whole weights, to which no base is added.",
            fix="Leave --base-weights out.",
        )
    return layout, tensors, bases


def _native_grid(
    tensors: dict[str, torch.Tensor],
    architecture: Architecture,
    config: huggingface.Config | None,
) -> tuple[int, int] | None:
    """Patch grid that the model was trained at, where the checkpoint tells."""
    position = tensors.get("backbone.pos_embed")
    grid = None if position is None else shapes.square_grid(position)
    if config and config.image_size:
        patch = architecture.patch_size
        grid = (config.image_size[0] // patch, config.image_size[1] // patch)
        if position is not None and grid[0] * grid[1] != position.shape[1]:
            raise CheckpointError(
                f"config.json says image_size {config.image_size[0]}x{config.image_size[1]}, a "
                f"grid of {grid[0]}x{grid[1]} patches; the weights have {position.shape[1]} "
                "position embeddings."
            )
    return grid
