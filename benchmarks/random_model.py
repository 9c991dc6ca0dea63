"""A network with random weights, which has the speed of a trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

SIZE = (640, 640)


def with_precision(spec: Any, precision: str) -> Any:
    """Description of the same model in another precision."""
    return replace(spec, precision=precision)


def random_small() -> tuple[Any, Any]:
    """EoMT-S with random weights, in evaluation mode, and its description."""
    import torch

    from eomt_deploy import __version__
    from eomt_deploy.architecture import Architecture
    from eomt_deploy.classes import make_classes
    from eomt_deploy.network.eomt import EoMT
    from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec

    arch = Architecture(384, 12, 6, "gelu", 1536, 4, 16, 200, 3, 133, 2)
    torch.manual_seed(0)
    network = EoMT(arch, SIZE).eval().requires_grad_(False)
    for value in network.parameters():
        if value.ndim > 1:
            value.normal_(std=0.02)
    names = [{"name": f"class {i}", "thing": i < 80} for i in range(arch.num_classes)]
    spec = ModelSpec(
        name="random EoMT-S", task="panoptic", image_size=SIZE, patch_size=16,
        num_queries=200, num_blocks=3, num_upscale=2, classes=make_classes(names, "random"),
        resize=RESIZE_RULES["panoptic"], thresholds=TASK_THRESHOLDS["panoptic"],
        backbone=Backbone("dinov2", 384, 12, 6, "gelu", 4, 0),
        provenance={"eomt_deploy": __version__},
    )  # fmt: skip
    return network, spec
