"""The paper's steps from ViT-Adapter + Mask2Former to EoMT, with random weights, for timing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import nn

from eomt_deploy.architecture import Architecture
from eomt_deploy.benchmarking.paper.baseline import Mask2Former
from eomt_deploy.benchmarking.paper.baseline.deformable import Sampling
from eomt_deploy.benchmarking.paper.eva02 import make_eva02
from eomt_deploy.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from eomt_deploy.checkpoints.dinov3 import ROPE_THETA
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.network.eomt import EoMT, LayerScale
from eomt_deploy.network.masked import AttentionKind, MaskedEoMT, choose_attention
from eomt_deploy.spec import Mlp

STEPS = (
    "ViT-Adapter + Mask2Former",
    "without ViT-Adapter",
    "without pixel decoder",
    "without multi-scale",
    "without Transformer decoder (EoMT with masked attention)",
    "without masking (EoMT)",
)
"""Names of the steps of the ladder, from step 0."""
REGISTERS = 4
PATCH = 16
TOKEN_STD = 0.02
LAYER_SCALE = 0.1


@dataclass(frozen=True)
class LadderBackbone:
    """A plain ViT, and the settings that depend on its size.

    Attributes:
        blocks: number of last blocks that process EoMT's queries.
        adapter_heads, adapter_ratio: deformable attention of its ViT-Adapter.
        family: ``dinov2``, ``dinov3``, ``deit3`` or ``eva02``.
        registers: number of register tokens.
        rope_theta: base of DINOv3's rotary position embedding; None without it. With it, only
            steps 4 and 5 exist.
    """

    width: int
    depth: int
    heads: int
    mlp: Mlp
    mlp_hidden: int
    blocks: int
    adapter_heads: int
    adapter_ratio: float
    family: str = "dinov2"
    registers: int = REGISTERS
    rope_theta: float | None = None


BACKBONES = {
    "tiny": LadderBackbone(64, 4, 2, "gelu", 128, 2, 4, 0.5),  # not in the paper; for tests
    "small": LadderBackbone(384, 12, 6, "gelu", 1536, 3, 6, 0.5),
    "base": LadderBackbone(768, 12, 12, "gelu", 3072, 3, 12, 0.5),
    "large": LadderBackbone(1024, 24, 16, "gelu", 4096, 4, 16, 0.5),
    "giant": LadderBackbone(1536, 40, 24, "swiglu", 4096, 5, 24, 0.5),
}
BACKBONES |= {
    f"{name}-dinov3": replace(BACKBONES[name], family="dinov3", rope_theta=ROPE_THETA)
    for name in ("tiny", "small", "base", "large")
}
# DeiT-III (arXiv 2204.07118) is DINOv2's ViT without registers.
BACKBONES |= {
    f"{name}-deit3": replace(BACKBONES[name], family="deit3", registers=0)
    for name in ("tiny", "large")
}
# With gate and value, this hidden width has as many weights as a plain MLP of 4 times the width.
BACKBONES |= {
    f"{name}-eva02": replace(
        BACKBONES[name],
        mlp="swiglu",
        mlp_hidden=BACKBONES[name].width * 8 // 3,
        family="eva02",
        registers=0,
    )
    for name in ("tiny", "large")
}


def build_step(
    step: int,
    backbone: str,
    *,
    size: tuple[int, int],
    queries: int,
    classes: int,
    seed: int = 0,
    attention: AttentionKind = "sdpa",
    sampling: Sampling = "grid_sample",
    device: str = "cpu",
) -> nn.Module:
    """Build one network of the ladder, float32, in evaluation mode.

    At every step, its ``forward`` takes images uint8 [B, H, W, 3] and returns class logits
    [B, Q, C+1] and mask logits [B, Q, H/4, W/4].

    Args:
        step: 0 to 5, see :data:`STEPS`.
        backbone: name from :data:`BACKBONES`.
        size: (H, W) in pixels.
        queries, classes: Q and C.
        seed: seed of the random weights.
        attention: ``sdpa`` for timing in PyTorch, ``written`` for export.
        sampling: kernel of the deformable attention of steps 0 and 1.
        device: device of the weights; ``meta`` allocates none, which is enough for counting.

    Raises:
        MissingDependencyError: sampling is ``triton``, which is not installed.
        UsageError: an unknown step, backbone or kernel, or a size that is not divisible.
    """
    dims = _checked(step, backbone, size, attention, sampling, device)
    arch = Architecture(
        width=dims.width,
        depth=dims.depth,
        heads=dims.heads,
        mlp=dims.mlp,
        mlp_hidden=dims.mlp_hidden,
        registers=dims.registers,
        patch_size=PATCH,
        num_queries=queries,
        num_blocks=dims.blocks,
        num_classes=classes,
        num_upscale=2,
        rope_theta=dims.rope_theta,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model: EoMT | Mask2Former
        if step < 4:
            model = Mask2Former(
                step,
                arch,
                size,
                heads=dims.adapter_heads,
                ratio=dims.adapter_ratio,
                attention=attention,
                sampling=sampling,
            )
        else:
            model = (EoMT if step == 5 else MaskedEoMT)(arch, size)
            choose_attention(model.backbone, attention)
        if dims.family == "eva02":
            _make_eva02(model, arch, size)
        _fill(model)
    return model.eval().requires_grad_(False)


def _make_eva02(model: EoMT | Mask2Former, arch: Architecture, size: tuple[int, int]) -> None:
    grid = (size[0] // PATCH, size[1] // PATCH)
    if isinstance(model, EoMT):
        make_eva02(model.backbone, grid, plain=arch.num_queries + arch.num_prefix)
    else:  # Mask2Former's backbone does not process queries
        make_eva02(model.encoder.backbone, grid, plain=arch.num_prefix)


@torch.no_grad()
def _fill(model: EoMT | Mask2Former) -> None:
    """Fill parameters that are 0 or 1 in a new network with values as in a trained one."""
    model.pixel_mean.copy_(torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
    model.pixel_std.copy_(torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.fill_(LAYER_SCALE)
    for name, value in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("cls_token", "reg_token", "pos_embed", "level"):
            value.normal_(std=TOKEN_STD)


def _checked(
    step: int, backbone: str, size: tuple[int, int], attention: str, sampling: str, device: str
) -> LadderBackbone:
    if not 0 <= step < len(STEPS):
        raise UsageError(
            f"Step must be between 0 and 5, got {step}.",
            fix="Use a step of table 1 of the paper: 0 (ViT-Adapter + Mask2Former) to 5 (EoMT).",
        )
    if backbone not in BACKBONES:
        raise UsageError(
            f"Backbone {backbone!r} is unknown.", fix=f"Use one of: {', '.join(BACKBONES)}."
        )
    if step < 4 and BACKBONES[backbone].rope_theta is not None:
        raise UsageError(
            f"Step of {backbone} must be 4 or 5, got {step}.",
            why="The paper has no baseline with DINOv3.",
            fix="Choose step 4 or 5, or a backbone without -dinov3.",
        )
    cell = 32 if step < 3 else PATCH
    if min(size) < cell or size[0] % cell or size[1] % cell:
        raise UsageError(
            f"Height and width must be multiples of {cell}, got {size[0]}x{size[1]}.",
            why=f"A cell of the network's coarsest map covers {cell} x {cell} pixels.",
            fix=f"Choose multiples of {cell}.",
        )
    if attention not in ("sdpa", "written"):
        raise UsageError(f"Attention {attention!r} is unknown.", fix="Use sdpa or written.")
    if sampling not in ("grid_sample", "triton"):
        raise UsageError(f"Sampling {sampling!r} is unknown.", fix="Use grid_sample or triton.")
    if sampling == "triton" and torch.device(device).type != "cuda":
        raise UsageError(
            f"The fused deformable attention cannot run on {device!r}.",
            why="It is a Triton kernel for NVIDIA GPUs.",
            fix='Pass device="cuda", or sampling="grid_sample".',
        )
    if sampling == "triton" and find_spec("triton") is None:
        raise MissingDependencyError(
            "The fused deformable attention needs Triton, which is not installed.",
            fix="pip install triton",
        )
    return BACKBONES[backbone]
