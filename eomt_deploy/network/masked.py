"""EoMT with masked attention, as in training: queries attend only to patches of their own mask.

Exported networks do not use it. It is step 4 of the paper's ladder (table 1), for benchmarks.
Shapes: B batch, Q queries, N patches, P class token and registers, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eomt_deploy.network.eomt import Attention, Backbone, Block, EoMT
from eomt_deploy.network.position import Rope, turn

AttentionKind = Literal["sdpa", "written"]
"""``sdpa``: PyTorch's fused kernels, e.g. FlashAttention, as in the paper's measurements.
``written``: separate products and softmax, as export needs them."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, scale: float, kind: AttentionKind
) -> Tensor:
    """Attention of ``q`` [B, heads, n, d] over ``k`` and ``v`` [B, heads, m, d].

    Args:
        q: queries.
        k: keys.
        v: values.
        allowed: bool, broadcast to [B, heads, n, m]: True where a query attends to a key. Each row
            needs at least one True.
        scale: factor of the scores.
        kind: implementation.
    """
    if kind == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ v


class MaskableAttention(Attention):
    """EoMT's attention with a choice of implementation and an optional attention mask."""

    def __init__(self, width: int, heads: int, kind: AttentionKind) -> None:
        super().__init__(width, heads)
        self.kind: AttentionKind = kind

    def forward(self, x: Tensor, rope: Rope | None = None, allowed: Tensor | None = None) -> Tensor:
        heads = (-1, x.shape[1], self.heads, self.head_width)
        q, k, v = (t.reshape(heads).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        x = attend(q, k, v, allowed, scale=self.scale, kind=self.kind)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return x


def choose_attention(backbone: Backbone, kind: AttentionKind) -> None:
    """Replace the attention of each block by a :class:`MaskableAttention` with the same weights."""
    for block in backbone.layers:
        old = block.attn
        with torch.device("meta"):  # its own weights are not needed
            new = MaskableAttention(old.proj.in_features, old.heads, kind)
        new.qkv, new.proj, new.scale = old.qkv, old.proj, old.scale
        block.attn = new


class MaskedEoMT(EoMT):
    """EoMT that predicts masks before each of its last blocks, and attends only inside them.

    Call :func:`choose_attention` on its backbone before running it.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`EoMT.forward`, but with masked attention (figure 2 of the paper)."""
        backbone, first = self.backbone, self.arch.depth - self.arch.num_blocks
        x = self.embed(images)
        rope = backbone.rope(self.arch.num_queries)
        for block in backbone.layers[:first]:
            x = block(x, rope)
        x = self.with_queries(x)
        rope = backbone.rope()
        for block in backbone.layers[first:]:
            _, mask_logits = self.predict(backbone.norm(x))
            x = _masked_block(block, x, rope, self.allowed(mask_logits))
        return self.predict(backbone.norm(x))

    def allowed(self, mask_logits: Tensor) -> Tensor:
        """Attention mask, bool [B, 1, Q + P + N, Q + P + N].

        A query attends to all queries, the class token, the registers and the patches of its mask.
        All other tokens attend to everything. So no row is empty.
        """
        logits = F.interpolate(mask_logits, self.grid, mode="bilinear", align_corners=False)
        inside = logits.flatten(2) > 0  # [B, Q, N]
        queries, prefix, patches = self.arch.num_queries, self.arch.num_prefix, inside.shape[2]
        return F.pad(inside, (queries + prefix, 0, 0, prefix + patches), value=True).unsqueeze(1)


def _masked_block(block: Block, x: Tensor, rope: Rope | None, allowed: Tensor) -> Tensor:
    x = x + block.ls1(block.attn(block.norm1(x), rope, allowed))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    return x
