"""Models exported by LightlyTrain: ``.pt`` files with the weights and the model's arguments.

They are read as data. Two differences are converted to our layout: its DINOv2 has a position for
the class token, and its DINOv3 multiplies the biases of queries, keys and values by a mask that is
0 for the keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from eomt_deploy.checkpoints.shapes import MAX_SIDE
from eomt_deploy.errors import CheckpointError
from eomt_deploy.spec import Task

if TYPE_CHECKING:
    from torch import Tensor

FACTS = "model_init_args"
"""Entry next to the weights, with facts that shapes do not contain."""
UPSCALE_NORM_EPS = 1e-5
"""PyTorch's default, which LightlyTrain uses in the upscaling; the official code uses 1e-6."""
NORM_EPS = {"dinov2": 1e-6, "dinov3": 1e-5}
POSITION_OFFSET = 0.1
"""Only for models without registers."""
DIGITS = {"torch.float16": 3, "torch.bfloat16": 2}
"""Significant decimal digits of each type; others have 5 or more."""
PERIODS = "backbone.rope_embed.periods"
# Used only in training, or recomputed by our network.
UNUSED = re.compile(
    r"backbone\.(?:mask_token|rope_embed\..+|(?:local_)?cls_norm\..+)|attn_mask_probs"
    r"|internal_class_to_class|is_stuff_class"
)
RENAMES = (
    (r"queries\.weight", "q.weight"),
    (r"backbone\.(?:register|storage)_tokens", "backbone.reg_token"),
    (r"backbone\.blocks\.(?:\d+\.)?(\d+)\.mlp\.w12\.(\w+)", r"backbone.blocks.\1.mlp.fc1.\2"),
    (r"backbone\.blocks\.(?:\d+\.)?(\d+)\.mlp\.w3\.(\w+)", r"backbone.blocks.\1.mlp.fc2.\2"),
    # Large models store their blocks in chunks.
    (r"backbone\.blocks\.\d+\.(\d+)\.(.+)", r"backbone.blocks.\1.\2"),
)


@dataclass(frozen=True)
class Facts:
    """Facts that the file stores next to the weights.

    Attributes:
        task: task of the model.
        image_size: trained (H, W) in pixels.
        num_blocks: number of blocks that process the queries.
        mean, std: normalisation of RGB values in 0-1.
        classes: name, and whether it is a thing, in the order of the class logits.
    """

    task: Task
    image_size: tuple[int, int]
    num_blocks: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[tuple[str, bool], ...]


def is_dinov3(keys: Iterable[str]) -> bool:
    return PERIODS in keys


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert any complete blocks to our key layout."""
    import torch

    left = {k: v for k, v in tensors.items() if not UNUSED.fullmatch(k)}
    position = left.get("backbone.pos_embed")
    if position is not None:  # the first position is that of the class token
        left["backbone.cls_token"] = left["backbone.cls_token"] + position[:, :1]
        left["backbone.pos_embed"] = position[:, 1:]
    for key in [k for k in left if k.endswith(".bias_mask")]:
        bias = key.removesuffix("_mask")
        left[bias] = left[bias] * left.pop(key)
    for key in [k for k in left if ".mlp.w1." in k]:  # the gate
        parts = [left.pop(key), left.pop(key.replace(".w1.", ".w2."))]
        left[key.replace(".w1.", ".fc1.")] = torch.cat(parts)
    return {_renamed(key): tensor for key, tensor in left.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key


def rope_theta(periods: Tensor) -> float:
    """Base ``theta`` of the rotary embedding: the n-th period is ``theta ** (n / len(periods))``.

    Raises:
        CheckpointError: the periods do not have this form.
    """
    import torch

    count = periods.numel()
    found = periods.flatten().double()
    fits = count > 1 and periods.is_floating_point() and bool((found > 0).all())
    if fits:
        # From the last period: a small one would be raised to a high power, with its rounding.
        theta = float(found[-1]) ** (count / (count - 1))
        wanted = theta ** (torch.arange(count, dtype=torch.float64) / count)
        rounding = max(4 * torch.finfo(periods.dtype).eps, 1e-5)
        fits = torch.allclose(found, wanted, rtol=rounding)
    if not fits:
        raise CheckpointError(
            "The periods of the rotary embedding are not powers of one base, as in DINOv3.",
            fix="Report it with the name of the model.",
        )
    # The base is a round number that is not stored, so it is rounded to the type's digits.
    return float(f"{theta:.{DIGITS.get(str(periods.dtype), 5)}g}")


def read_facts(arguments: object) -> Facts:
    """Read the facts from the entry :data:`FACTS`.

    Raises:
        CheckpointError: the entry is missing, or does not have LightlyTrain's format.
    """
    try:
        found = cast("dict[str, Any]", arguments)
        if "thing_classes" in found:
            task: Task = "panoptic"
            classes = [(name, True) for name in found["thing_classes"].values()]
            classes += [(name, False) for name in found["stuff_classes"].values()]
        else:
            task = "semantic" if "class_ignore_index" in found else "instance"
            classes = [(n, task == "instance") for n in found["classes"].values()]
        height, width = (int(side) for side in found["image_size"])
        normalize = found["image_normalize"]
        mean, std = (tuple(float(x) for x in normalize[name]) for name in ("mean", "std"))
        sides_fit = min(height, width) >= 1 and max(height, width) <= MAX_SIDE
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0 or not sides_fit:
            raise ValueError(f"mean {mean}, std {std}, size {height}x{width}")
        blocks = int(found["num_joint_blocks"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"The entry {FACTS!r} of this LightlyTrain model cannot be read ({error!r}).",
            why="It contains task, classes, size and number of blocks, which tensor shapes do not.",
            fix="Pass the file that LightlyTrain exported: exported_models/exported_best.pt.",
        ) from error
    return Facts(
        task=task,
        image_size=(height, width),
        num_blocks=blocks,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        classes=tuple((str(name), thing) for name, thing in classes),
    )
