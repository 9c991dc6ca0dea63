"""Checkpoint -> network at the wanted image size, with every key accounted for."""

from __future__ import annotations

import torch

from eomt_deploy.checkpoints.checkpoint import Checkpoint
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.position import resample_position

SHOWN_KEYS = 12
"""Keys listed of each kind before the rest is only counted."""


def build_network(checkpoint: Checkpoint, image_size: tuple[int, int]) -> EoMT:
    """The float32 network, ready to run at ``image_size`` (H, W), in evaluation mode.

    Raises:
        CheckpointError: keys are missing, extra or mis-shaped, all listed; or values not finite.
        UsageError: the size is no multiple of the patch, or the trained size is unknown.
    """
    arch = checkpoint.architecture
    patch = arch.patch_size
    if image_size[0] % patch or image_size[1] % patch or min(image_size) < patch:
        raise UsageError(
            f"Size {image_size[0]}x{image_size[1]} is no multiple of the patch size {patch}.",
            fix=f"Try --size {_nearest(image_size[0], patch)}x{_nearest(image_size[1], patch)}.",
        )
    tensors = dict(checkpoint.tensors)
    new_grid = (image_size[0] // patch, image_size[1] // patch)
    if arch.rope_theta is None:
        position = tensors["backbone.pos_embed"]
        old_grid = checkpoint.native_grid
        if old_grid is None:
            raise UsageError(
                f"The checkpoint has {position.shape[1]} position embeddings, which is no square, "
                "so its trained size is unknown.",
                fix="Pass --native-size HxW, the size that it was trained at.",
            )
        # In float32: rounding resampled values to the checkpoint's 16 bits would lose accuracy.
        tensors["backbone.pos_embed"] = resample_position(position.float(), old_grid, new_grid)

    with torch.device("meta"):
        model = EoMT(arch, image_size)
    _check_keys(model, tensors)
    _check_finite(tensors)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    model.backbone.place_rope(arch, new_grid)
    return model.eval().requires_grad_(False)


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors of the checkpoint hold NaN or infinity: "
            + ", ".join(broken[:SHOWN_KEYS])
            + (", …" if len(broken) > SHOWN_KEYS else "."),
            why="A training run that diverged, or a damaged file.",
            fix="Pass an earlier checkpoint.",
        )


def _nearest(side: int, patch: int) -> int:
    return max(patch, round(side / patch) * patch)


def _check_keys(model: EoMT, tensors: dict[str, torch.Tensor]) -> None:
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
        "The checkpoint's keys do not fit the network.\n  " + "\n  ".join(lines),
        fix="Check that the file is whole and is an EoMT with a DINOv2 or DINOv3 backbone.",
    )
