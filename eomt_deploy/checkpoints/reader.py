"""One door for every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from eomt_deploy.checkpoints import files, huggingface, official, shapes
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from eomt_deploy.errors import CheckpointError


def read_checkpoint(
    path: str | Path, *, heads: int | None = None, num_blocks: int | None = None
) -> Checkpoint:
    """Read a trained EoMT; the layout is recognised by its keys, not its name.

    Args:
        path: official ``.bin``/``.pt``/``.ckpt``, ``.safetensors``, a Hugging Face model
            folder, or ``hf://owner/name``.
        heads: attention heads, where neither width / 64 nor config.json tells.
        num_blocks: blocks that see the queries, where ``attn_mask_probs`` is absent.

    Raises:
        CheckpointError: nothing there, damaged, with code inside, or not an EoMT.
        MissingDependencyError: ``hf://`` without huggingface-hub.
    """
    text = str(path)
    if text.startswith(huggingface.HUB_PREFIX):
        path = huggingface.download(text.removeprefix(huggingface.HUB_PREFIX))
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    config = huggingface.read_config(path) if path.is_dir() else None
    weights = files.weight_files(path) if path.is_dir() else [path]
    stored: dict[str, torch.Tensor] = {}
    for file in weights:
        stored |= files.read_tensors(file)

    if huggingface.recognises(stored):
        layout, tensors = "huggingface", huggingface.canonical(stored)
    elif official.recognises(stored):
        layout, tensors = "official", official.canonical(stored)
    else:
        raise CheckpointError(
            f"{path} holds tensors, but no EoMT: neither the official keys (network.…) nor "
            f"Hugging Face's ({huggingface.MARKER}) are there.",
            why=f"Its keys look like {', '.join(list(stored)[:3])}.",
            fix="Pass the checkpoint of a trained EoMT, not of a backbone or another network.",
        )

    mask_probs = tensors.pop("attn_mask_probs", None)
    if mask_probs is not None and num_blocks not in (None, mask_probs.numel()):
        raise CheckpointError(
            f"--num-blocks {num_blocks} contradicts the checkpoint, whose attn_mask_probs has "
            f"{mask_probs.numel()} entries.",
            fix="Leave --num-blocks out.",
        )
    architecture = shapes.read_architecture(
        tensors,
        num_blocks=num_blocks if mask_probs is None else mask_probs.numel(),
        heads=heads or (config.heads if config else None),
        norm_eps=config.norm_eps if config else 1e-6,
    )
    tensors.setdefault("pixel_mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
    tensors.setdefault("pixel_std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
    grid = shapes.square_grid(tensors["backbone.pos_embed"])
    if config and config.image_size:
        patch, tokens = architecture.patch_size, tensors["backbone.pos_embed"].shape[1]
        grid = (config.image_size[0] // patch, config.image_size[1] // patch)
        if grid[0] * grid[1] != tokens:
            raise CheckpointError(
                f"config.json says image_size {config.image_size[0]}x{config.image_size[1]}, a "
                f"grid of {grid[0]}x{grid[1]} patches; the weights have {tokens} position "
                "embeddings."
            )
    return Checkpoint(
        tensors=tensors,
        architecture=architecture,
        native_grid=grid,
        attn_mask_probs=None if mask_probs is None else tuple(mask_probs.float().tolist()),
        class_names=config.class_names if config else None,
        source_format=layout,
        sha256=files.sha256(weights),
    )
