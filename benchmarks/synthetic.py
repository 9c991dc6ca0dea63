"""Synthetic outputs of a network, for benchmarks of the post-processing."""

from __future__ import annotations

from typing import Any

import numpy as np

from eomt_deploy import catalog
from eomt_deploy.processing import Geometry
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec

QUERIES, KEPT = 200, 20
MODELS = {
    "panoptic": "coco-panoptic-eomt-small-640",
    "instance": "coco-instance-eomt-large-640",
    "semantic": "ade20k-semantic-eomt-large-512",
}


def made_up_outputs(spec: ModelSpec, geometry: Geometry, seed: int = 0) -> tuple[Any, Any]:
    """Synthetic outputs as from a trained model: certain and uncertain queries, rough edges.

    Returns:
        class logits [N, 200, C+1] and mask logits [N, 200, h, w]. 20 queries divide the image among
        them: each has the pixels nearest to a random point. The others are "no object".
    """
    import cv2

    rng = np.random.default_rng(seed)
    stride = geometry.input_size[0] // spec.mask_size[0]
    merged = geometry.scaled_size if geometry.windows else geometry.input_size
    height, width = (side // stride + 1 for side in merged)
    rows, columns = np.mgrid[:height, :width]
    seen = [side / stride for side in geometry.scaled_size]  # without padding
    points = rng.uniform(0, 1, (KEPT, 2, 1, 1)) * np.array(seen)[:, None, None]
    distance = np.hypot(rows - points[:, 0], columns - points[:, 1])
    nearest, second = np.sort(distance, axis=0)[:2]
    inside = np.where(distance == nearest, second - nearest, nearest - distance)
    coarse = rng.normal(size=(QUERIES, 16, 16)).astype(np.float32)
    smooth = [cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse]
    masks = 3 * np.stack(smooth) - 6
    kept = rng.choice(QUERIES, KEPT, replace=False)
    masks[kept] = 1.2 * np.clip(inside, -14, 14)
    masks = (masks + 0.5 * rng.normal(size=masks.shape)).astype(np.float32)
    classes = rng.normal(size=(QUERIES, len(spec.classes) + 1)).astype(np.float32)
    classes[:, -1] += 10
    classes[kept, -1] = 0
    classes[kept, rng.integers(len(spec.classes), size=KEPT)] = 12
    windows = geometry.windows or ((0, merged[1]),)
    crop_height, crop_width = spec.mask_size
    crops = [masks[:, :crop_height, s // stride : s // stride + crop_width] for s, _ in windows]
    return np.repeat(classes[None], len(windows), 0), np.stack(crops)


def overlapping_outputs(spec: ModelSpec, geometry: Geometry, seed: int = 0) -> tuple[Any, Any]:
    """Harder than of a trained model: each query is a certain class, and its blob overlaps others.

    Returns:
        as :func:`made_up_outputs`.
    """
    rng = np.random.default_rng(seed)
    number, (height, width) = geometry.num_inputs, spec.mask_size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    count = (number, spec.num_queries, 1, 1)
    y, x = rng.uniform(0, height, count), rng.uniform(0, width, count)
    tall, wide = rng.uniform(4, 40, (2, *count))
    masks = 6 - 8 * (((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2)
    masks = np.clip(masks, -12, 6) + 0.5 * rng.normal(size=masks.shape)
    classes = rng.normal(size=(number, spec.num_queries, len(spec.classes) + 1))
    classes[..., -1] -= 2
    chosen = rng.integers(len(spec.classes), size=(*count[:2], 1))
    np.put_along_axis(classes, chosen, rng.uniform(6, 9, chosen.shape), axis=-1)
    return classes.astype(np.float32), masks.astype(np.float32)


def random_outputs(spec: ModelSpec, geometry: Geometry, seed: int = 0) -> tuple[Any, Any]:
    """The worst case, as from random weights: every query is everywhere, nothing can be skipped.

    Returns:
        as :func:`made_up_outputs`.
    """
    rng = np.random.default_rng(seed)
    number = geometry.num_inputs
    classes = rng.normal(size=(number, spec.num_queries, len(spec.classes) + 1))
    masks = rng.normal(size=(number, spec.num_queries, *spec.mask_size))
    return classes.astype(np.float32), masks.astype(np.float32)


KINDS = {
    "": (QUERIES, made_up_outputs),
    ", overlapping": (100, overlapping_outputs),
    ", worst case": (100, random_outputs),
}
"""Name of a distribution of outputs -> number of queries, and the function that makes them."""
HARD = [
    ("instance", ", overlapping"),
    ("semantic", ", overlapping"),
    ("semantic", ", worst case"),
]
"""Tasks and kinds. In the other combinations, the rules of the task drop all segments."""


def spec_of(task: str, queries: int = QUERIES) -> ModelSpec:
    entry = catalog.find_checkpoint(MODELS[task])
    return ModelSpec(
        name=entry.name, task=task, image_size=entry.size, patch_size=16, num_queries=queries,
        num_blocks=3, num_upscale=2, classes=entry.class_list(), resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task], backbone=Backbone("dinov2", 384, 12, 6, "gelu", 4, 1),
    )  # fmt: skip
