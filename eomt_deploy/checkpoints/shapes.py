"""Architecture of an EoMT checkpoint, inferred from its tensor shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from eomt_deploy.architecture import Architecture
from eomt_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIDE = 16_384
"""Maximum side of a network input, in pixels."""
MAX_HEADS = 1024
MAX_BLOCKS = 512
"""The largest published model has 40."""

HEAD_WIDTHS = {4096: 128}
HEAD_WIDTH = 64
"""Head width of all published models except the 7B model; the number of heads is not stored."""

NEEDED = (
    "backbone.cls_token",
    "backbone.patch_embed.proj.weight",
    "backbone.blocks.0.mlp.fc1.weight",
    "backbone.blocks.0.mlp.fc2.weight",
    "q.weight",
    "class_head.weight",
    "upscale.0.conv1.weight",
)
RANKS = {
    "backbone.pos_embed": 3,
    "backbone.cls_token": 3,
    "backbone.reg_token": 3,
    "backbone.patch_embed.proj.weight": 4,
}


def read_architecture(
    tensors: Mapping[str, Tensor],
    *,
    num_blocks: int | None,
    heads: int | None,
    norm_eps: float,
    upscale_norm_eps: float = 1e-6,
    rope_theta: float | None = None,
) -> Architecture:
    """Infer widths and counts of a network from its tensors.

    Args:
        tensors: weights in our key layout.
        num_blocks: number of blocks that process the queries; None if it is unknown.
        heads: number of attention heads; None for width / 64.
        norm_eps, upscale_norm_eps: LayerNorm epsilons, which shapes do not contain.
        rope_theta: base of the rotary position embedding; None if positions are learned.

    Raises:
        CheckpointError: keys are missing, shapes are not those of an EoMT, or the number of blocks
            or heads is unknown or impossible.
    """
    needed = NEEDED if rope_theta is not None else (*NEEDED, "backbone.pos_embed")
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise CheckpointError(
            f"This is not a complete EoMT checkpoint: {len(missing)} required keys are missing: "
            f"{', '.join(missing)}.",
            why=f"The file has {len(tensors)} tensors, such as {', '.join(list(tensors)[:3])}.",
            fix="Pass a trained EoMT (official, Hugging Face), not a backbone or another network.",
        )
    shapes = {key: tuple(tensors[key].shape) for key in tensors}
    wrong = [
        f"{key} has shape {list(shapes[key])}, expected {RANKS.get(key, 2)} dimensions"
        for key in (*NEEDED[:-1], "backbone.pos_embed", "backbone.reg_token")
        if key in shapes and len(shapes[key]) != RANKS.get(key, 2)
    ]
    wrong += [
        f"{key} has shape {list(shapes[key])}, which is empty"
        for key in (*NEEDED, *RANKS)
        if 0 in shapes.get(key, ())
    ]
    width = next(iter(shapes["backbone.patch_embed.proj.weight"]), 0)
    wrong += [
        f"{key} has shape {list(shapes[key])}, expected {width} values each"
        for key in ("backbone.pos_embed", "backbone.cls_token", "q.weight", "class_head.weight")
        if key in shapes and shapes[key][-1:] != (width,)
    ]
    if shapes["class_head.weight"][:1] == (1,):
        wrong.append("class_head.weight has one row for 'no object', but none for a class")
    if wrong:
        raise CheckpointError(
            "The shapes are not those of an EoMT: " + "; ".join(dict.fromkeys(wrong)) + ".",
            fix="Check that the file is complete and is a trained EoMT.",
        )
    if num_blocks is None:
        raise CheckpointError(
            "The number of blocks that process the queries is unknown: the checkpoint does not "
            "contain attn_mask_probs.",
            fix="Pass a complete EoMT checkpoint, or e.g. --num-blocks 4 (S and B: 3, L: 4, g: 5).",
        )

    patch_size = shapes["backbone.patch_embed.proj.weight"][2]
    depth = _count(tensors, r"backbone\.blocks\.(\d+)\.")
    fc1_out = shapes["backbone.blocks.0.mlp.fc1.weight"][0]
    mlp_hidden = shapes["backbone.blocks.0.mlp.fc2.weight"][1]
    registers = shapes["backbone.reg_token"][1] if "backbone.reg_token" in shapes else 0
    if not 1 <= num_blocks <= depth:
        raise CheckpointError(
            f"The number of blocks that process the queries must be between 1 and {depth}, got "
            f"{num_blocks}.",
            fix="Pass a complete EoMT checkpoint, or correct --num-blocks.",
        )
    return Architecture(
        width=width,
        depth=depth,
        heads=_heads(width, heads),
        mlp="swiglu" if fc1_out == 2 * mlp_hidden else "gelu",
        mlp_hidden=mlp_hidden,
        registers=registers,
        patch_size=patch_size,
        num_queries=shapes["q.weight"][0],
        num_blocks=num_blocks,
        num_classes=shapes["class_head.weight"][0] - 1,
        num_upscale=_count(tensors, r"upscale\.(\d+)\."),
        norm_eps=norm_eps,
        upscale_norm_eps=upscale_norm_eps,
        rope_theta=rope_theta,
    )


def square_grid(pos_embed: Tensor) -> tuple[int, int] | None:
    """The square patch grid of ``pos_embed`` [1, N, D]; None if N is not a square number."""
    side = math.isqrt(pos_embed.shape[1])
    return (side, side) if side * side == pos_embed.shape[1] else None


def _heads(width: int, heads: int | None) -> int:
    if heads is None:
        head_width = HEAD_WIDTHS.get(width, HEAD_WIDTH)
        if width % head_width:
            raise CheckpointError(
                "The number of attention heads is unknown: the checkpoint does not store it, and "
                f"its width {width} is not a multiple of {HEAD_WIDTH}, the usual head width.",
                fix="Pass --heads.",
            )
        return width // head_width
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"Width {width} cannot be split into {heads} heads.",
            fix="Pass the --heads that the model was trained with.",
        )
    return heads


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Number of parts that the group of ``pattern`` numbers.

    Raises:
        CheckpointError: the numbers have gaps, or there are too many.
    """
    found = {int(match[1][:12]) for key in tensors if (match := re.match(pattern, key))}
    if found and (max(found) != len(found) - 1 or len(found) > MAX_BLOCKS):
        part = pattern.partition(r"\.(")[0].replace("\\", "")
        raise CheckpointError(
            f"The numbers after {part}. must count from 0 without gaps, up to {MAX_BLOCKS - 1}, "
            f"got {len(found)} different numbers up to {max(found)}.",
            fix="Check that the file is complete and is a trained EoMT.",
        )
    return len(found)
