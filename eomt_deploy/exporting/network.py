"""Network from a checkpoint, at the requested image size, with a strict check of all keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from eomt_deploy.checkpoints.checkpoint import Checkpoint
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting.describe import check_patches
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.position import resample_position
from eomt_deploy.network.streamed import stream_blocks

SHOWN_KEYS = 12
"""Maximum number of keys that an error lists per kind."""


def build_network(
    checkpoint: Checkpoint, image_size: tuple[int, int], *, stream: bool = False
) -> EoMT:
    """The float32 network, ready to run at ``image_size`` (H, W), in evaluation mode.

    Args:
        checkpoint: weights of any float type.
        image_size: network input (H, W) in pixels.
        stream: read each block from the checkpoint whenever it runs, so that the network can be
            larger than the memory.

    Raises:
        CheckpointError: keys are missing, unknown or of another shape, or values are not finite.
        UsageError: the size is not a multiple of the patch size, or the trained size is unknown.
    """
    arch = checkpoint.architecture
    patch = arch.patch_size
    check_patches(image_size, patch)
    new_grid = (image_size[0] // patch, image_size[1] // patch)
    position = _position(checkpoint, new_grid)
    with torch.device("meta"):
        model = EoMT(arch, image_size)
    _check_keys(model, {**checkpoint.tensors.shapes, **position})
    tensors = checkpoint.tensors if stream else dict(checkpoint.tensors)
    _check_finite(tensors)

    def read(block: int) -> dict[str, torch.Tensor]:
        prefix = f"backbone.blocks.{block}."
        found = checkpoint.tensors.block(block)
        return {k.removeprefix(prefix): v.to(torch.float32, copy=True) for k, v in found.items()}

    if stream:
        stream_blocks(model, read)
    state = {**(checkpoint.tensors.block(None) if stream else tensors), **position}
    # Not strict, because streamed blocks stay without values.
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False, assign=True)
    model.backbone.place_rope(arch, new_grid)
    return model.eval().requires_grad_(False)


def _position(checkpoint: Checkpoint, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Learned position embeddings for ``grid``; empty if positions are rotary."""
    if checkpoint.architecture.rope_theta is not None:
        return {}
    position = checkpoint.tensors["backbone.pos_embed"]
    if checkpoint.native_grid is None:
        raise UsageError(
            "The trained size cannot be inferred from the checkpoint.",
            why=f"Its {position.shape[1]} position embeddings do not form a square grid.",
            fix="Pass the trained size: --native-size HxW.",
        )
    # In float32, because rounding the resampled values to 16 bits would lose accuracy.
    resampled = resample_position(
        position.float(), checkpoint.native_grid, grid, offset=checkpoint.position_offset
    )
    return {"backbone.pos_embed": resampled}


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors of the checkpoint contain NaN or infinity: "
            + ", ".join(broken[:SHOWN_KEYS])
            + (", …" if len(broken) > SHOWN_KEYS else "."),
            why="The training diverged, or the file is damaged.",
            fix="Use an earlier checkpoint.",
        )


def _check_keys(model: EoMT, tensors: Mapping[str, torch.Tensor]) -> None:
    wanted = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    problems = {
        "missing": [key for key in wanted if key not in found],
        "unknown": [key for key in found if key not in wanted],
        "mis-shaped": [
            f"{key} is {found[key]}, expected {wanted[key]}"
            for key in wanted
            if key in found and found[key] != wanted[key]
        ],
    }
    if not any(problems.values()):
        return
    lines = [
        f"{kind} ({len(keys)}): " + ", ".join(keys[:SHOWN_KEYS])
        + (f", and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
        for kind, keys in problems.items()
        if keys
    ]  # fmt: skip
    raise CheckpointError(
        "The keys of the checkpoint do not match the network.\n  " + "\n  ".join(lines),
        fix="Check that the file is complete and is an EoMT with a DINOv2 or DINOv3 backbone.",
    )
