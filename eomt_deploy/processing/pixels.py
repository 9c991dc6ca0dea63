"""Per-pixel post-processing: calls into the compiled kernels of ``native/``.

The rows of an image are divided among threads; ctypes releases the GIL during a call.
Why C: the kernels skip, tile by tile, queries and classes that cannot change the result. OpenCV
functions and ONNX graphs process complete images. numba is slower, and compiles for 7 s at the
first call (`benchmarks/results/amd-epyc-2-cores/numba_panoptic.json`).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import UsageError
from eomt_deploy.masks import Box, RunMask
from eomt_deploy.pixel_labels import Labels, label_type
from eomt_deploy.processing.compiled import (
    check_done,
    check_geometry,
    in_bands,
    library,
    pointer,
    readable,
)
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.tables import Table, composed_table, logit_table

Float = npt.NDArray[np.float32]

TILE_ROWS = 32
"""Rows of a tile of ``panoptic.c``; bands are multiples of it, so that no tile is cut."""
TILE_SIDE = 16
"""Side of a tile of ``semantic.c``, in pixels of the merged windows."""
SIMD_WIDTH = 16
"""Number of queries that ``semantic.c`` processes at once (SIMD lanes)."""
UNIT = 2.0**-24
"""Unit of the sums of probabilities: see ``arithmetic.h``."""
CHECKED_ALONE, CHECKED_AT_ONCE = 1 << 23, 1 << 20
"""Maximum number of values that a single thread checks faster than several, and values per band."""


@dataclass(frozen=True)
class MaskResize:
    """Resize tables from mask to image, vertical and horizontal: see :func:`composed_table`."""

    down: Table
    across: Table


@lru_cache(maxsize=64)
def mask_resize(mask_size: Size, geometry: Geometry) -> MaskResize:
    """As in the official code: resize to the network's input, remove padding, resize to the image.

    Raises:
        UsageError: the geometry is inconsistent.
    """
    check_geometry(geometry)
    down, across = (
        composed_table(
            logit_table(mask, inside), logit_table(scaled, image), max(mask, 3)
        )
        for mask, inside, scaled, image in zip(
            mask_size, geometry.input_size, geometry.scaled_size, geometry.image_size, strict=True
        )
    )  # fmt: skip
    return MaskResize(down, across)


def paint_queries(
    masks: Float,
    resize: MaskResize,
    scores: Float,
    mask_threshold: float,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Assign each pixel to the query with the highest class score x mask probability.

    Args:
        masks: mask logits [K, h, w].
        resize: resize tables from the masks to the image.
        scores: class scores [K].
        mask_threshold: minimum mask probability of a pixel inside a mask.
        threads: number of CPU threads; None uses all, up to 16.

    Returns:
        owner int16 [H, W], index into the masks, -1 where the mask of the owner is off; and
        areas int64 [3, K], in pixels: area of each mask, pixels that each query won, and pixels
        that it won inside its mask.
    """
    masks, scores = readable(masks), np.ascontiguousarray(scores, np.float32)
    count, height, width = masks.shape
    size = len(resize.down), len(resize.across)
    if scores.shape != (count,):
        raise UsageError(
            f"{count} masks need {count} scores, got shape {list(scores.shape)}.",
            fix="Pass one score for each mask.",
        )
    owners = np.empty(size, np.int16)

    def paint(start: int, end: int) -> npt.NDArray[np.int64]:
        areas = np.zeros((3, count), np.int64)
        check_done(library().paint_panoptic(
            pointer(masks), count, height, width, pointer(resize.down), pointer(resize.across),
            *size, pointer(scores), ctypes.c_float(mask_threshold), start, end, pointer(owners),
            pointer(areas),
        ))  # fmt: skip
        return areas

    return owners, np.sum(in_bands(paint, size[0], TILE_ROWS, threads), axis=0)


def label_segments(
    owners: npt.NDArray[np.int16], segment_of: npt.NDArray[np.int32], threads: int | None = None
) -> tuple[Labels, list[Box]]:
    """The segment of each pixel, and the bounding box of each segment.

    Args:
        owners: int16 [H, W], index of a query or -1.
        segment_of: int32 [K + 1], segment of each query or -1; the last entry is for owner -1.
        threads: see :func:`paint_queries`.

    Returns:
        labels [H, W], segment ids + 1 or 0; and the box (x0, y0, x1, y1) of each segment, x1 and
        y1 exclusive.
    """
    owners = np.ascontiguousarray(owners, np.int16)
    segment_of = np.ascontiguousarray(segment_of, np.int32)
    count = int(segment_of.max(initial=-1)) + 1
    labels = np.empty(owners.shape, label_type(count + 1))

    def label(start: int, end: int) -> npt.NDArray[np.int32]:
        boxes = np.tile(np.array([*owners.shape[::-1], 0, 0], np.int32), (count, 1))
        check_done(library().label_segments(
            pointer(owners), *owners.shape, pointer(segment_of), len(segment_of) - 1, count,
            start, end, labels.itemsize - 1, pointer(labels), pointer(boxes),
        ))  # fmt: skip
        return boxes

    found = np.stack(in_bands(label, len(owners), TILE_ROWS, threads))
    boxes = np.concatenate([found[:, :, :2].min(axis=0), found[:, :, 2:].max(axis=0)], axis=1)
    return labels, [tuple(box) for box in boxes.tolist()]


MEASURE = np.dtype([("area", "i8"), ("inside", "i8"), ("box", "i4", 4), ("runs", "i8")])
"""``struct Measure`` of ``instance.c``."""


def measure_masks(
    masks: Float, queries: Sequence[int], resize: MaskResize, threads: int | None = None
) -> list[tuple[RunMask, float]]:
    """The masks of some queries at image size, and the sums of the probabilities inside them.

    Args:
        masks: mask logits [Q, h, w].
        queries: indices of the masks.
        resize: resize tables from the masks to the image.
        threads: see :func:`paint_queries`.
    """
    masks = readable(masks)
    size = len(resize.down), len(resize.across)
    numbers = np.array(queries, np.int32)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(masks):
        raise UsageError(
            f"Queries must be from 0 to {len(masks) - 1}, got {list(queries)}.",
            fix="Pass indices of the masks.",
        )

    def measure(start: int, end: int) -> list[tuple[RunMask, float]]:
        own = numbers[start:end]
        measures = np.zeros(len(own), MEASURE)
        found = ctypes.c_void_p()
        check_done(library().measure_instances(
            pointer(masks), pointer(own), len(own), *masks.shape[1:], pointer(resize.down),
            pointer(resize.across), *size, pointer(measures), ctypes.byref(found),
        ))  # fmt: skip
        try:
            runs = np.empty((int(measures["runs"].sum()), 2), np.uint32)
            if len(runs):
                ctypes.memmove(pointer(runs), found, runs.nbytes)
        finally:
            library().free_runs(found)
        return run_masks(size, measures, runs)

    parts = in_bands(measure, len(numbers), 1, threads)
    return [mask for part in parts for mask in part]


def run_masks(
    size: Size, measures: npt.NDArray[np.void], runs: npt.NDArray[np.uint32]
) -> list[tuple[RunMask, float]]:
    """Masks and sums of probabilities, from an array of :data:`MEASURE` and all runs [R, 2]."""
    ends = np.cumsum(measures["runs"]).tolist()
    fields = zip(*(measures[name].tolist() for name in ("area", "inside", "box")), strict=True)
    return [
        (RunMask(size, tuple(box) if area else (0, 0, 0, 0), area, runs[start:end]), inside * UNIT)
        for (area, inside, box), start, end in zip(fields, [0, *ends], ends, strict=False)
    ]


def softmax(logits: Float) -> Float:
    """Softmax over the last axis, float32. The result is the same on all CPUs and GPUs with FMA."""
    logits = np.ascontiguousarray(logits, np.float32)
    probabilities = np.empty_like(logits)
    columns = logits.shape[-1]
    check_done(library().softmax(
        pointer(logits), ctypes.c_int64(logits.size // columns), columns, pointer(probabilities)
    ))  # fmt: skip
    return probabilities


class Job(ctypes.Structure):
    """``struct Job`` of ``semantic.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "masks", "probabilities", "starts", "stretches", "input_down", "input_across",
            "image_down", "image_across", "labels",
        )),
        *((name, ctypes.c_int32) for name in (
            "windows", "queries", "lanes", "classes", "mask_height", "mask_width",
            "input_height", "input_width", "merged_height", "merged_width", "axis",
            "stretch_count", "height", "width", "tile_rows", "tile_columns", "wide",
        )),
    )  # fmt: skip


def classify_pixels(
    probabilities: Float, masks: Float, geometry: Geometry, threads: int | None = None
) -> Labels:
    """The class with the highest mean over the windows of class x mask probability.

    Args:
        probabilities: class probabilities [N, Q, C], without "no object".
        masks: mask logits [N, Q, h, w].
        geometry: geometry of the image, with N network inputs.
        threads: see :func:`paint_queries`.

    Returns:
        class ids [H, W] at image size.
    """
    windows, queries, height, width = masks.shape
    classes = probabilities.shape[-1]
    check_geometry(geometry)
    merged, size = geometry.merged_size, geometry.image_size
    if probabilities.shape != (windows, queries, classes) or windows != geometry.num_inputs:
        raise UsageError(
            f"Class probabilities {list(probabilities.shape)} and mask logits {list(masks.shape)} "
            f"do not match each other or the {geometry.num_inputs} network inputs of the geometry.",
            fix="Pass the outputs of one image together with the geometry that `preprocess` "
            "returned with it.",
        )
    spans = geometry.windows if windows > 1 else ((0, merged[geometry.axis]),)
    padded = np.zeros((windows, classes, -(-queries // SIMD_WIDTH) * SIMD_WIDTH), np.float32)
    padded[..., :queries] = probabilities.transpose(0, 2, 1)
    labels = np.empty(size, label_type(classes + 1))
    arrays = [
        np.ascontiguousarray(masks, dtype=np.float32),
        padded,
        np.array([start for start, _ in spans], np.int32),
        stretches(spans),
        logit_table(height, geometry.input_size[0]),
        logit_table(width, geometry.input_size[1]),
        logit_table(merged[0], size[0]),
        logit_table(merged[1], size[1]),
        labels,
    ]
    tile_rows, tile_columns = (
        max(1, TILE_SIDE * image // inside) for image, inside in zip(size, merged, strict=True)
    )
    job = Job(
        *(pointer(array) for array in arrays), windows, queries, padded.shape[-1], classes,
        height, width, *geometry.input_size, *merged, geometry.axis, len(arrays[3]), *size,
        tile_rows, tile_columns, labels.itemsize - 1,
    )  # fmt: skip

    def classify(start: int, end: int) -> None:
        check_done(library().classify_pixels(ctypes.byref(job), start, end))

    in_bands(classify, size[0], tile_rows, threads)
    return labels


def stretches(spans: tuple[tuple[int, int], ...]) -> npt.NDArray[np.int32]:
    """Parts of the axis that the same windows cover: [parts, 4], as ``Stretch`` in ``semantic.h``.

    Args:
        spans: [start, end) of each window.
    """
    edges = sorted({edge for span in spans for edge in span})
    found = []
    for start, end in itertools.pairwise(edges):
        here = [i for i, (first, last) in enumerate(spans) if first <= start and end <= last]
        found.append((start, end, here[0], len(here)))
    return np.array(found, np.int32)


def any_not_finite(values: Float, threads: int | None = None) -> bool:
    """Whether any value is infinite or NaN.

    Args:
        values: C-contiguous array of any shape.
        threads: see :func:`paint_queries`.
    """
    flat = values.reshape(-1)

    def check(start: int, end: int) -> bool:
        part = flat[start:end]
        return bool(library().any_not_finite(pointer(part), ctypes.c_int64(len(part))))

    if len(flat) <= CHECKED_ALONE:
        return check(0, len(flat))
    return any(in_bands(check, len(flat), CHECKED_AT_ONCE, threads))
