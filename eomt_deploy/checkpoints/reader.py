"""Single entry point for all kinds of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from eomt_deploy.addresses import is_address
from eomt_deploy.architecture import Architecture
from eomt_deploy.checkpoints import (
    chosen,
    dinov3,
    download,
    folder,
    huggingface,
    lightly,
    official,
    tensor_files,
)
from eomt_deploy.checkpoints.blockwise import BlockwiseTensors, by_block
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from eomt_deploy.checkpoints.shapes import read_architecture, square_grid
from eomt_deploy.errors import CheckpointError


def read_checkpoint(
    path: str | Path,
    *,
    heads: int | None = None,
    num_blocks: int | None = None,
    base_weights: str | Path | None = None,
    weights_key: str | None = None,
    preferred_key: str | None = None,
    insecure: bool = False,
) -> Checkpoint:
    """Read a trained EoMT. The layout is recognised by the keys, not by the file name.

    Args:
        path: official ``.bin``/``.pt``/``.ckpt``, LightlyTrain's ``.pt``, ``.safetensors``, a
            Hugging Face model folder, ``hf://owner/name[@revision]``, or a URL (https://).
        heads: number of attention heads, if it is not width / 64 and not in config.json.
        num_blocks: number of blocks that process the queries, if ``attn_mask_probs`` is missing.
        base_weights: DINOv3 model that an official file adds to: file, folder or ``hf://…``, see
            :mod:`eomt_deploy.checkpoints.dinov3`.
        weights_key: weights to take from the file, e.g. ``state_dict`` or ``ema``; None takes the
            averaged (EMA) weights, if any.
        preferred_key: as ``weights_key``, but ignored if the file does not have it, e.g. the key of
            an earlier export.
        insecure: allow ``http://`` without a hash, see
            :func:`eomt_deploy.checkpoints.download.download`.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, would run code, is not an EoMT,
            contains several without a ``weights_key``, or needs base weights.
        MissingDependencyError: ``hf://`` needs huggingface-hub, which is not installed.
    """
    path, revision = _local(path, insecure)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}.", fix="Correct the path.")
    config = huggingface.read_config(path) if path.is_dir() else None
    weights = folder.weight_files(path) if path.is_dir() else [path]
    stored = chosen.choose(tensor_files.WeightFiles(weights), path, weights_key, preferred_key)
    layout = _layout(stored, path, config, base_weights, insecure)
    facts = layout.facts
    try:
        shapes = layout.convert(stored.shapes)
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"Tensors of {path} are missing, or do not fit together: {error}.",
            fix="Check that the file is complete and is a trained EoMT.",
        ) from error
    groups = by_block(stored.shapes)
    rest = layout.convert(stored.read(groups[None]))
    mask_probs = rest.get("attn_mask_probs")
    stored_blocks = facts.num_blocks if facts else None
    if mask_probs is not None:
        if mask_probs.ndim != 1:
            raise CheckpointError(
                f"attn_mask_probs of {path} must have one dimension, got shape "
                f"{list(mask_probs.shape)}.",
                fix="Check that the file is complete and is a trained EoMT.",
            )
        stored_blocks = mask_probs.numel()
    if stored_blocks is not None and num_blocks not in (None, stored_blocks):
        raise CheckpointError(
            f"--num-blocks {num_blocks} contradicts the checkpoint, which stores {stored_blocks}.",
            fix="Leave --num-blocks out.",
        )

    def read(block: int | None) -> dict[str, torch.Tensor]:
        return _completed(layout.convert(stored.read(groups[block])), block)

    tensors = BlockwiseTensors(_completed(shapes, None), read, _completed(rest, None))
    architecture = read_architecture(
        tensors.shapes,
        num_blocks=num_blocks if stored_blocks is None else stored_blocks,
        heads=heads or (config.heads if config else None),
        norm_eps=layout.norm_eps,
        upscale_norm_eps=layout.upscale_norm_eps,
        rope_theta=layout.rope_theta,
    )
    names = tuple(name for name, _ in facts.classes) if facts else None
    return Checkpoint(
        tensors=tensors,
        architecture=architecture,
        native_grid=_native_grid(tensors.shapes, architecture, layout, config),
        attn_mask_probs=None if mask_probs is None else tuple(mask_probs.float().tolist()),
        class_names=config.class_names if config else names,
        source_format=layout.name,
        sha256=tensor_files.sha256([*weights, *layout.bases]),
        task=facts.task if facts else None,
        things=tuple(thing for _, thing in facts.classes) if facts else None,
        position_offset=layout.position_offset,
        trained_size=facts.image_size if facts else None,
        weights_key="" if stored.alone and stored.label == "." else stored.label,
        stripped=stored.stripped,
        revision=revision,
        notes=stored.notes,
    )


def _local(path: str | Path, insecure: bool) -> tuple[Path, str | None]:
    """Download a URL or ``hf://owner/name`` if needed.

    Returns:
        local path; and the commit, for ``hf://``.
    """
    text = str(path)
    if text.startswith(huggingface.HUB_PREFIX):
        place = huggingface.download(text.removeprefix(huggingface.HUB_PREFIX))
        return place, huggingface.commit_of(place)
    if is_address(text):
        return download.download(text, insecure=insecure), None
    return Path(path), None


@dataclass(frozen=True)
class _Layout:
    """Naming scheme of a checkpoint, and constants of the code that it comes from.

    Attributes:
        name: name for users, also stored in exported models.
        convert: converts any complete blocks of the file to our names.
        bases: files of the base weights, if the checkpoint is a difference.
        norm_eps, upscale_norm_eps: LayerNorm epsilons, which shapes do not contain.
        rope_theta: base of rotary positions; None if positions are learned.
        position_offset: see :func:`eomt_deploy.network.position.resample_position`.
        facts: facts stored next to the weights, if any.
    """

    name: str
    convert: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
    bases: tuple[Path, ...] = ()
    norm_eps: float = 1e-6
    upscale_norm_eps: float = 1e-6
    rope_theta: float | None = None
    position_offset: float = 0.0
    facts: lightly.Facts | None = None


def _layout(
    stored: chosen.Weights,
    path: Path,
    config: huggingface.Config | None,
    base_weights: str | Path | None,
    insecure: bool,
) -> _Layout:
    if stored.layout == "huggingface":
        layout = _huggingface(stored, config)
    elif stored.layout == "lightly-train":
        layout = _lightly(stored)
    else:
        layout = _Layout("official", official.canonical)
        if dinov3.is_official(official.canonical(stored.shapes)):
            layout = _official_dinov3(stored, path, base_weights, insecure)
    if base_weights is not None and not layout.bases:
        raise CheckpointError(
            "--base-weights has no effect here: the checkpoint contains the complete weights.",
            fix="Leave it out.",
        )
    return layout


def _huggingface(stored: chosen.Weights, config: huggingface.Config | None) -> _Layout:
    eps = config.norm_eps if config else 1e-6  # transformers' default
    if not huggingface.is_dinov3(stored.shapes):
        return _Layout("huggingface", huggingface.canonical, norm_eps=eps)
    theta = (config and config.rope_theta) or dinov3.ROPE_THETA
    return _Layout("huggingface DINOv3", huggingface.canonical, norm_eps=eps, rope_theta=theta)


def _lightly(stored: chosen.Weights) -> _Layout:
    facts = lightly.read_facts(stored.entry(lightly.FACTS))

    def convert(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = lightly.canonical(tensors)
        if "q.weight" in found:  # this part contains everything outside the blocks
            for name, values in (("pixel_mean", facts.mean), ("pixel_std", facts.std)):
                found[name] = torch.tensor(values).reshape(1, 3, 1, 1)
        return found

    family = "dinov3" if lightly.is_dinov3(stored.shapes) else "dinov2"
    registers = "backbone.register_tokens" in stored.shapes
    theta = None
    if family == "dinov3":
        periods = stored.read([lightly.PERIODS])[lightly.PERIODS]
        theta = lightly.rope_theta(periods)
    return _Layout(
        "lightly-train" + " DINOv3" * (family == "dinov3"),
        convert,
        norm_eps=lightly.NORM_EPS[family],
        upscale_norm_eps=lightly.UPSCALE_NORM_EPS,
        rope_theta=theta,
        # DINOv2 models without registers were trained with this offset.
        position_offset=0.0 if registers else lightly.POSITION_OFFSET,
        facts=facts,
    )


def _official_dinov3(
    stored: chosen.Weights, path: Path, base_weights: str | Path | None, insecure: bool
) -> _Layout:
    def named(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dinov3.renamed(official.canonical(tensors), dinov3.OFFICIAL)

    marking = [key for key in stored.shapes if dinov3.marks_delta(key)]
    if not dinov3.is_delta(named(stored.read(marking))):
        return _Layout(
            "official DINOv3",
            lambda part: huggingface.canonical(named(part)),
            norm_eps=dinov3.OFFICIAL_NORM_EPS,
            rope_theta=dinov3.ROPE_THETA,
        )
    place = None if base_weights is None else _local(base_weights, insecure)[0]
    base = dinov3.open_base(place, path)
    base.check(named(stored.shapes), path)
    return _Layout(
        "official DINOv3 difference",
        lambda part: huggingface.canonical(base.added_to(named(part))),
        base.files.paths,
        norm_eps=dinov3.OFFICIAL_NORM_EPS,
        rope_theta=dinov3.ROPE_THETA,
    )


def _completed(tensors: dict[str, torch.Tensor], block: int | None) -> dict[str, torch.Tensor]:
    """Remove non-weights. Outside the blocks, add the ImageNet normalisation if none is stored."""
    tensors.pop("attn_mask_probs", None)
    if block is None:
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            tensors.setdefault(name, torch.tensor(values).reshape(1, 3, 1, 1))
    return tensors


def _native_grid(
    shapes: Mapping[str, torch.Tensor],
    architecture: Architecture,
    layout: _Layout,
    config: huggingface.Config | None,
) -> tuple[int, int] | None:
    """Patch grid (rows, columns) of the position embeddings, if it is known.

    Raises:
        CheckpointError: config.json contradicts the weights.
    """
    if layout.facts and architecture.rope_theta is not None:
        height, width = layout.facts.image_size
        return height // architecture.patch_size, width // architecture.patch_size
    position = shapes.get("backbone.pos_embed")
    grid = None if position is None else square_grid(position)
    if config and config.image_size:
        patch = architecture.patch_size
        grid = (config.image_size[0] // patch, config.image_size[1] // patch)
        if position is not None and grid[0] * grid[1] != position.shape[1]:
            raise CheckpointError(
                f"image_size {config.image_size[0]}x{config.image_size[1]} in config.json has "
                f"{grid[0]}x{grid[1]} patches, but the weights have {position.shape[1]} position "
                "embeddings.",
                fix="Download the folder again, or correct the file.",
            )
    return grid
