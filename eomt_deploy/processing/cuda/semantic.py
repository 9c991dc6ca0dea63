"""Semantic results on the GPU: the class with the highest mean score of the windows."""

from __future__ import annotations

import numpy as np

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Array
from eomt_deploy.pixel_labels import label_type
from eomt_deploy.processing.cuda.workspace import NOT_FINITE, GpuWorkspace, Pending, maps
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.tables import logit_table
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec, Thresholds

STEP = (7, 15)
"""Merged pixels from one tile of ``classify_tiles`` to the next: (rows, columns)."""
CLASSES = 160
"""Number of classes that ``classify_tiles`` computes together."""


def start(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: DeviceArray,
    masks: DeviceArray,
    geometry: Geometry,
    thresholds: Thresholds,
) -> Pending:
    """Enqueue the post-processing of class logits [N, Q, C+1] and mask logits [N, Q, h, w].

    Semantic segmentation has no thresholds.
    """
    scratch = workspace.scratch
    merged, size = geometry.merged_size, geometry.image_size
    classes = len(spec.classes)
    bundle = scratch.bundle("semantic", not_finite=NOT_FINITE)
    starts, input_taps, image_taps, (rows, columns) = tables(workspace, spec, geometry)
    across = columns.shape[0] - 1
    leads = 0
    if classes > CLASSES:
        leads = scratch.array("leads", (*size, 2), np.float32).pointer
    labels = scratch.array("labels", size, label_type(classes + 1))

    workspace.find_not_finite(bundle, class_logits, masks)
    probabilities = workspace.softmax(class_logits)
    _, best = workspace.find_best(probabilities, classes)
    workspace.launch_blocks(
        "classify_tiles", (rows.shape[0] - 1) * across,
        *maps(masks), spec.num_queries, *input_taps, starts,
        geometry.num_inputs, geometry.input_size[geometry.axis], geometry.axis, *merged,
        probabilities.pointer, best, classes, across, rows.pointer, columns.pointer,
        *image_taps, size[1], labels.dtype.itemsize - 1, leads, labels.pointer,
    )  # fmt: skip
    found = bundle.fetch()
    pixels = scratch.fetch("labels", labels)

    def finish() -> Segmentation:
        copy = pixels.copy()  # the next image uses the pinned memory
        return Segmentation("semantic", size, spec.classes, labels=copy)

    return Pending(found, finish)


def tables(
    workspace: GpuWorkspace, spec: ModelSpec, geometry: Geometry
) -> tuple[int, tuple[int, int], tuple[int, int], list[DeviceArray]]:
    """The starts of the windows, two pairs of resize tables, and the pixels of the tiles."""
    merged, size = geometry.merged_size, geometry.image_size
    return (
        workspace.starts(geometry),
        workspace.taps("mask to input", spec.mask_size, geometry.input_size),
        workspace.taps("merged to image", merged, size),
        workspace.scratch.tables(
            "tiles", (merged, size), lambda: [*map(first_pixels, merged, size, STEP)]
        ),
    )


def first_pixels(merged: int, image: int, step: int) -> Array:
    """int32 [tiles + 1]: first image row (or column) of each tile, and the number of all.

    A pixel belongs to the tile that contains its neighbour ``low``.
    """
    starts = np.arange(0, merged + step, step)
    return np.searchsorted(logit_table(merged, image)["low"], starts).astype(np.int32)
