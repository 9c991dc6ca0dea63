"""The paper's ladder from ViT-Adapter + Mask2Former to EoMT, with random weights: for speed."""

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
"""What each step of the ladder is; step N is the N-th."""
REGISTERS = 4
PATCH = 16
TOKEN_STD = 0.02
LAYER_SCALE = 0.1


@dataclass(frozen=True)
class LadderBackbone:
    """A plain ViT and what belongs to its size.

    Attributes:
        blocks: last blocks that see EoMT's queries.
        adapter_heads, adapter_ratio: deformable attention of its ViT-Adapter.
        family: ``dinov2``, ``dinov3``, ``deit3`` or ``eva02``.
        registers: register tokens beside the class token.
        rope_theta: rotary position embedding of DINOv3; those have steps 4 and 5 only.
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
    "tiny": LadderBackbone(64, 4, 2, "gelu", 128, 2, 4, 0.5),  # no model of the paper: for tests
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
# EVA-02's hidden width: with gate and value, as many weights as a plain MLP of 4 times the width.
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
    """One network of the ladder, float32, in evaluation mode.

    Its ``forward`` takes images uint8 [B, H, W, 3] and gives class logits [B, Q, C+1] and mask
    logits [B, Q, H/4, W/4], at every step.

    Args:
        step: 0 to 5, see :data:`STEPS`.
        backbone: a name of :data:`BACKBONES`.
        size: (H, W) in pixels.
        queries, classes: Q and C.
        seed: of the random weights.
        attention: ``sdpa`` to time in PyTorch, ``written`` to export.
        sampling: kernel of the deformable attention of steps 0 and 1.
        device: where the weights are made; ``meta`` makes none, to count.

    Raises:
        MissingDependencyError: Triton is wanted and not installed.
        UsageError: no such step, backbone or kernel, or a size that does not divide.
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
    else:  # the queries of Mask2Former never meet the backbone
        make_eva02(model.encoder.backbone, grid, plain=arch.num_prefix)


@torch.no_grad()
def _fill(model: EoMT | Mask2Former) -> None:
    """Values where a fresh network has zeros or ones that a trained one has not."""
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
        raise UsageError(f"The ladder has no step {step}.", fix="Its steps are 0 to 5.")
    if backbone not in BACKBONES:
        raise UsageError(
            f"The ladder has no backbone {backbone!r}.", fix=f"Known: {', '.join(BACKBONES)}."
        )
    if step < 4 and BACKBONES[backbone].rope_theta is not None:
        raise UsageError(
            f"The ladder has no step {step} of {backbone}.",
            why="The baseline was measured on DINOv2.",
            fix="Its steps are 4 and 5.",
        )
    cell = 32 if step < 3 else PATCH
    if min(size) < cell or size[0] % cell or size[1] % cell:
        raise UsageError(
            f"Size {size[0]}x{size[1]} is no multiple of {cell}.",
            why="The network's coarsest map has a cell for each square of so many pixels.",
            fix=f"Choose multiples of {cell}.",
        )
    if attention not in ("sdpa", "written"):
        raise UsageError(f"There is no attention {attention!r}.", fix="Known: sdpa, written.")
    if sampling not in ("grid_sample", "triton"):
        raise UsageError(f"There is no sampling {sampling!r}.", fix="Known: grid_sample, triton.")
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
