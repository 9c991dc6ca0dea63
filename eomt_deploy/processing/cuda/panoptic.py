"""Panoptic results on the GPU: the same steps as :mod:`eomt_deploy.processing.panoptic`."""

from __future__ import annotations

import numpy as np

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Array
from eomt_deploy.masks import Box
from eomt_deploy.pixel_labels import label_type
from eomt_deploy.processing.cuda.workspace import NOT_FINITE, GpuWorkspace, Pending, maps
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.panoptic import Chosen, join_queries
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment
from eomt_deploy.spec import ModelSpec, Thresholds

TILE = 32
"""Side of a tile of ``paint_queries``."""


def start(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: DeviceArray,
    masks: DeviceArray,
    geometry: Geometry,
    thresholds: Thresholds,
) -> Pending:
    """Enqueue the post-processing of class logits [1, Q, C+1] and mask logits [1, Q, h, w]."""
    scratch = workspace.scratch
    height, width = size = geometry.image_size
    number, classes = spec.num_queries, len(spec.classes)
    bundle = scratch.bundle(
        "panoptic",
        not_finite=NOT_FINITE, chosen=((1,), np.int32), queries=((number,), np.int32),
        class_ids=((number,), np.int32), scores=((number,), np.float32),
        areas=((3, number), np.uint64), boxes=((number, 4), np.int32),
        firsts=((classes,), np.int32), segments=((number,), np.uint16),
    )  # fmt: skip
    at = bundle.pointer
    (things,) = scratch.tables("things", (), lambda: [np.array([c.thing for c in spec.classes])])
    owners = scratch.array("owners", size, np.int16)
    labels = scratch.array("labels", size, label_type(number + 1))
    spans = workspace.spans(spec.mask_size, geometry)

    workspace.find_not_finite(bundle, class_logits, masks)
    best = workspace.find_best(workspace.softmax(class_logits), classes + 1)
    workspace.launch_blocks(
        "list_queries", 1,
        *best, number, classes, thresholds.score, at("chosen"), at("queries"), at("class_ids"),
        at("scores"),
    )  # fmt: skip
    workspace.launch_blocks(
        "paint_queries", -(-height // TILE) * -(-width // TILE),
        *maps(masks), *spans, *size, at("chosen"), at("queries"), at("scores"), number,
        thresholds.mask, owners.pointer, at("areas"), at("boxes"),
    )  # fmt: skip
    workspace.launch_blocks(
        "join_queries", 1,
        at("chosen"), number, at("class_ids"), at("areas"), things.pointer, thresholds.overlap,
        at("firsts"), at("segments"),
    )  # fmt: skip
    workspace.launch(
        "label_segments", height * width,
        owners.pointer, at("segments"), height * width, labels.dtype.itemsize - 1, labels.pointer,
    )  # fmt: skip
    found = bundle.fetch()
    pixels = scratch.fetch("labels", labels)

    def finish() -> Segmentation:
        count = int(found["chosen"][0])
        chosen = Chosen(*(found[name][:count] for name in ("queries", "class_ids", "scores")))
        areas = found["areas"][:, :count].astype(np.int64)
        stuff = frozenset(c.id for c in spec.classes if not c.thing)
        # The same decisions as in the kernel, from the same areas.
        segment_of, merged = join_queries(chosen, areas, stuff, thresholds.overlap)
        boxes = segment_boxes(found["boxes"][:count], segment_of[:-1], len(merged), size)
        # A copy, because the next image uses the pinned memory.
        result = pixels.astype(label_type(len(merged) + 1))
        return Segmentation(
            "panoptic",
            size,
            spec.classes,
            labels=result,
            segments=tuple(
                Segment.from_map(index, spec.classes[s.class_id], s.score, result, s.area, box)
                for index, (s, box) in enumerate(zip(merged, boxes, strict=True))
            ),
        )

    return Pending(found, finish)


def segment_boxes(boxes: Array, segment_of: Array, count: int, size: Size) -> list[Box]:
    """The box of each of ``count`` segments, from the boxes of its queries on the GPU."""
    kept = segment_of >= 0
    found = np.zeros((count, 4), np.int32)
    np.maximum.at(found, segment_of[kept], boxes[kept])
    return [tuple(box) for box in plain_boxes(found, size).tolist()]


def plain_boxes(boxes: Array, size: Size) -> Array:
    """Boxes (x0, y0, x1, y1) [K, 4] from boxes as ``enlarge_box`` stores them."""
    height, width = size
    return np.asarray(np.abs(boxes - np.array([width, height, 0, 0], np.int32)))
