"""The numbers that define an EoMT network. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from eomt_deploy.spec import Mlp


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the network; all but ``heads`` follows from the weights' shapes.

    Attributes:
        width: token width D.
        depth: number of transformer blocks.
        heads: number of attention heads.
        mlp: ``gelu`` (fc1, GELU, fc2) or ``swiglu`` (fc1 packs gate and value, gate first).
        mlp_hidden: input width of fc2.
        registers: number of register tokens, in addition to the class token.
        patch_size: side of a patch in pixels.
        num_queries: number of learned queries Q.
        num_blocks: number of last blocks that process the queries together with the patches.
        num_classes: number of classes C without "no object".
        num_upscale: number of x2 upscaling steps of the patch grid.
        norm_eps: LayerNorm epsilon of the backbone.
        upscale_norm_eps: LayerNorm epsilon of the upscaling.
        rope_theta: base of the rotary position embedding (DINOv3); None for learned positions
            (DINOv2).
    """

    width: int
    depth: int
    heads: int
    mlp: Mlp
    mlp_hidden: int
    registers: int
    patch_size: int
    num_queries: int
    num_blocks: int
    num_classes: int
    num_upscale: int
    norm_eps: float = 1e-6
    upscale_norm_eps: float = 1e-6
    rope_theta: float | None = None

    @property
    def family(self) -> str:
        """Family of the backbone: ``dinov2`` or ``dinov3``."""
        return "dinov2" if self.rope_theta is None else "dinov3"

    @property
    def num_prefix(self) -> int:
        """Number of tokens between queries and patches: class token and registers."""
        return 1 + self.registers
