"""Descriptions and logits without a network, for tests of the post-processing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from eomt_deploy.classes import make_classes
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec

STUFF = {0, 1}
NUM_CLASSES = 4


def classes(count):
    return make_classes([{"name": str(i), "thing": i not in STUFF} for i in range(count)], "test")


CLASSES = classes(NUM_CLASSES)


def make_spec(task, size=(64, 64), queries=6, number=NUM_CLASSES) -> ModelSpec:
    return ModelSpec(
        name=task,
        task=task,
        image_size=size,
        patch_size=16,
        num_queries=queries,
        num_blocks=1,
        num_upscale=2,
        classes=classes(number),
        resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task],
        backbone=Backbone("dinov2", 64, 4, 2, "gelu", 4, 0),
    )


def make_logits(seed: int, shape: tuple[int, ...], queries: int = 6, number: int = NUM_CLASSES):
    """Confident class logits, and mask logits of smooth, overlapping blobs."""
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(*shape[:-2], queries, number + 1), scale=4)
    coarse = torch.from_numpy(rng.normal(size=(int(np.prod(shape[:-2])), queries, 4, 4), scale=9))
    masks = F.interpolate(coarse, shape[-2:], mode="bicubic").numpy()
    return classes.astype(np.float32), masks.reshape(*shape[:-2], queries, *shape[-2:]).astype(np.float32)  # noqa: E501  # fmt: skip
