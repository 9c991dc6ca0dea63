"""A network with random weights, which has the speed of a trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

SIZE = (640, 640)


def with_precision(spec: Any, precision: str) -> Any:
    """Description of the same model in another precision."""
    return replace(spec, precision=precision)


SHAPES = {"S": (384, 12, 6, 3), "L": (1024, 24, 16, 4)}
"""Width, number of layers, number of heads, and number of layers with queries."""


def random_small(shape: str = "S") -> tuple[Any, Any]:
    """EoMT-S (or another of :data:`SHAPES`) with random weights, in evaluation mode, and its
    description."""
    import torch

    from eomt_deploy import __version__
    from eomt_deploy.architecture import Architecture
    from eomt_deploy.classes import make_classes
    from eomt_deploy.network.eomt import EoMT
    from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec

    width, depth, heads, blocks = SHAPES[shape]
    arch = Architecture(width, depth, heads, "gelu", 4 * width, 4, 16, 200, blocks, 133, 2)
    torch.manual_seed(0)
    network = EoMT(arch, SIZE).eval().requires_grad_(False)
    for value in network.parameters():
        if value.ndim > 1:
            value.normal_(std=0.02)
    names = [{"name": f"class {i}", "thing": i < 80} for i in range(arch.num_classes)]
    spec = ModelSpec(
        name=f"random EoMT-{shape}", task="panoptic", image_size=SIZE, patch_size=16,
        num_queries=200, num_blocks=blocks, num_upscale=2, classes=make_classes(names, "random"),
        resize=RESIZE_RULES["panoptic"], thresholds=TASK_THRESHOLDS["panoptic"],
        backbone=Backbone("dinov2", width, depth, heads, "gelu", 4, 0),
        provenance={"eomt_deploy": __version__},
    )  # fmt: skip
    return network, spec
