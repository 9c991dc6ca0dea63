"""EoMT for inference: a plain ViT whose last blocks also process the queries.

Names of modules and parameters are the keys of official checkpoints without the prefixes
``network.`` and ``network.encoder.``. There is no masked attention, because annealed models do not
use it (paper, section 3.3).
Shapes: B batch, Q queries, N patches, D width, C classes, P = 1 + registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.architecture import Architecture
from eomt_deploy.network.position import Rope, rope_table, turn

UPSCALE_NORM_EPS = 1e-6


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention.

    Attributes:
        fused: use PyTorch's fused kernel, see :func:`fused_attention`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.fused = False
        self.heads = heads
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        # Batch is -1, because it is the only size that can be dynamic in the traced graph.
        heads = (-1, x.shape[1], self.heads, self.head_width)
        q, k, v = (t.reshape(heads).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        if self.scale != 1.0:
            q = q * self.scale
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:  # separate operators, which backends recognise as attention in the exported graph
            x = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v  # [B, heads, tokens, head_width]
        x = self.proj(x.transpose(1, 2).flatten(2))
        return x


@contextmanager
def on_gpu(model: nn.Module) -> Iterator[torch.device]:
    """Move a network to the GPU for a while, if PyTorch can use one, and compute without TF32.

    A network that is on the GPU stays there.

    Yields:
        the device that its inputs must be on.
    """
    if not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    owners: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [owner.allow_tf32 for owner in owners]
    moved = next(model.parameters()).device.type == "cpu"
    try:
        for owner in owners:
            owner.allow_tf32 = False
        yield next(model.cuda().parameters()).device
    finally:
        if moved:
            model.cpu()
        for owner, allowed in zip(owners, before, strict=True):
            owner.allow_tf32 = allowed


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Run a network with PyTorch's fused attention, which needs half the time on a CPU and does
    not store all scores. Outside the block, attention is written out again, as export needs it."""
    layers = [m for m in model.modules() if isinstance(m, Attention) and not m.fused]
    for layer in layers:
        layer.fused = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fused = False


class GeluMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


class SwigluMlp(nn.Module):
    """``fc2(silu(gate) * value)``, with gate and value packed in ``fc1``, gate first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        x = self.fc2(F.silu(gate) * value)
        return x


class Block(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        mlp = SwigluMlp if arch.mlp == "swiglu" else GeluMlp
        self.norm1 = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.attn = Attention(arch.width, arch.heads)
        self.ls1: nn.Module = LayerScale(arch.width)
        self.norm2 = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.mlp = mlp(arch.width, arch.mlp_hidden)
        self.ls2: nn.Module = LayerScale(arch.width)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # [B, D, h, w]
        return x.flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """Parameters of the encoder with their timm names; :class:`EoMT` runs them."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, arch: Architecture, grid: tuple[int, int]) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.width))
        if arch.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, arch.registers, arch.width))
        if arch.rope_theta is None:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], arch.width))
        else:
            self.place_rope(arch, grid)
        self.patch_embed = PatchEmbed(arch.width, arch.patch_size)
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.width, eps=arch.norm_eps)

    @property
    def layers(self) -> list[Block]:
        """``blocks`` with their type, which ModuleList does not preserve."""
        return cast("list[Block]", list(self.blocks))

    def place_rope(self, arch: Architecture, grid: tuple[int, int]) -> None:
        """Create the rotary tables on the default device; without effect for learned positions."""
        if arch.rope_theta is None:
            return
        plain = arch.num_queries + arch.num_prefix
        cos, sin = rope_table(grid, plain, arch.width // arch.heads, arch.rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def rope(self, skipped: int = 0) -> Rope | None:
        """Rotations of all tokens except the first ``skipped``; None if positions are learned."""
        if not hasattr(self, "rope_cos"):
            return None
        return self.rope_cos[skipped:], self.rope_sin[skipped:]

    def prefix(self) -> Tensor:
        """Class and register tokens [1, P, D], which do not have a position."""
        registers = getattr(self, "reg_token", None)
        return self.cls_token if registers is None else torch.cat([self.cls_token, registers], 1)


class UpscaleBlock(nn.Module):
    def __init__(self, width: int, norm_eps: float = UPSCALE_NORM_EPS) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.gelu(self.conv1(x)))
        x = self.norm(x.permute(0, 2, 3, 1))  # over channels
        return x.permute(0, 3, 1, 2)


class EoMT(nn.Module):
    """Encoder-only Mask Transformer without masked attention.

    Args:
        arch: widths and counts.
        image_size: (H, W) in pixels, multiples of the patch size.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, arch: Architecture, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.arch = arch
        self.grid = (image_size[0] // arch.patch_size, image_size[1] // arch.patch_size)
        width = arch.width
        self.normalize = True
        self.register_buffer("pixel_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(1, 3, 1, 1))
        self.backbone = Backbone(arch, self.grid)
        # Without the weight, it would import all of torch._dynamo on the meta device: two seconds.
        queries = torch.randn(arch.num_queries, width)
        self.q = nn.Embedding(arch.num_queries, width, _weight=queries)
        self.class_head = nn.Linear(width, arch.num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width),
        )  # fmt: skip
        steps = (UpscaleBlock(width, arch.upscale_norm_eps) for _ in range(arch.num_upscale))
        self.upscale = nn.Sequential(*steps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment a batch.

        Args:
            images: uint8 [B, H, W, 3], RGB 0-255.

        Returns:
            class logits [B, Q, C+1] (the last column is "no object") and mask logits
            [B, Q, H/4, W/4] (for patch size 16), both before any activation.
        """
        backbone, first = self.backbone, self.arch.depth - self.arch.num_blocks
        x = self.embed(images)
        rope = backbone.rope(self.arch.num_queries)
        for block in backbone.layers[:first]:
            x = block(x, rope)
        x = self.with_queries(x)
        rope = backbone.rope()
        for block in backbone.layers[first:]:
            x = block(x, rope)
        return self.predict(backbone.norm(x))

    def embed(self, images: Tensor) -> Tensor:
        """Class token, registers and patches [B, P + N, D] of images uint8 [B, H, W, 3]."""
        backbone = self.backbone
        x = images.to(self.q.weight.dtype).permute(0, 3, 1, 2)
        if self.normalize:
            x = (x / 255 - self.pixel_mean) / self.pixel_std
        x = backbone.patch_embed(x)
        if self.arch.rope_theta is None:
            x = x + backbone.pos_embed
        return torch.cat([backbone.prefix().expand(images.shape[0], -1, -1), x], dim=1)

    def with_queries(self, x: Tensor) -> Tensor:
        """Prepend the learned queries to the tokens: [B, Q + P + N, D]."""
        queries = self.q.weight.unsqueeze(0).expand(x.shape[0], -1, -1)
        return torch.cat([queries, x], dim=1)

    def predict(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Class and mask logits from normalised tokens [B, Q + P + N, D]."""
        queries = tokens[:, : self.arch.num_queries]
        patches = tokens[:, self.arch.num_queries + self.arch.num_prefix :]
        features = patches.transpose(1, 2).reshape(-1, self.arch.width, *self.grid)
        features = self.upscale(features)  # [B, D, 4h, 4w]
        mask_logits = self.mask_head(queries) @ features.flatten(2)
        size = features.shape[-2:]
        return self.class_head(queries), mask_logits.reshape(-1, self.arch.num_queries, *size)
