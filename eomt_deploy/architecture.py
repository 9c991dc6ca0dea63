"""The numbers that define an EoMT network. No torch here: checkpoint readers fill them in."""

from __future__ import annotations

from dataclasses import dataclass

from eomt_deploy.spec import Mlp


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the network; all but ``heads`` shows in the shapes.

    Attributes:
        width: token width D.
        depth: transformer blocks.
        heads: attention heads.
        mlp: ``gelu`` (fc1, GELU, fc2) or ``swiglu`` (fc1 packs gate and value, gate first).
        mlp_hidden: input width of fc2.
        registers: register tokens beside the class token.
        patch_size: side of a patch in pixels.
        num_queries: learned queries Q.
        num_blocks: last blocks that see the queries.
        num_classes: classes C without "no object".
        num_upscale: x2 upscaling steps of the patch grid.
        norm_eps: LayerNorm epsilon of the backbone.
        upscale_norm_eps: LayerNorm epsilon of the upscaling.
        rope_theta: base of the rotary position embedding (DINOv3); None where positions are
            learned (DINOv2).
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
        """What the backbone was trained as."""
        return "dinov2" if self.rope_theta is None else "dinov3"

    @property
    def num_prefix(self) -> int:
        """Class token and registers, which stand between queries and patches."""
        return 1 + self.registers
