"""Per-pixel post-processing: calls into the compiled kernels of ``native/``.

The rows of an image are divided among threads; ctypes releases the GIL during a call.
Why C: the kernels skip, tile by tile, queries and classes that cannot change the result. OpenCV
functions and ONNX graphs process complete images. numba is slower, and compiles for 7 s at the
first call (`benchmarks/results/amd-epyc-2-cores/numba_panoptic.json`).
"""

from __future__ import annotations

import ctypes
import itertools
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.devices import usable_cores
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.tables import Table, composed_table, logit_table
from eomt_deploy.result import Box, PackedMask

Float = npt.NDArray[np.float32]

FOLDER = Path(__file__).parent / "native"
SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}.get(platform.system(), ".so")
AVX2, FMA3 = 11, 12
"""OpenCV's numbers of these CPU features."""

TILE_ROWS = 32
"""Rows of a tile of ``panoptic.c``; bands are multiples of it, so that no tile is cut."""
TILE_SIDE = 16
"""Side of a tile of ``semantic.c``, in pixels of the merged windows."""
SIMD_WIDTH = 16
"""Number of queries that ``semantic.c`` processes at once (SIMD lanes)."""
BANDS_PER_THREAD = 4
"""More than 1, because the work per band differs: some show only sky."""
MAX_THREADS = 16
VERSION = 2
"""Version of the kernels' arguments; must equal ``kernel_version`` in ``outputs.c``."""
NO_MEMORY, WRONG_ARGUMENTS = -1, -2
MAX_SIDE, MAX_NUMBER = 1 << 15, (1 << 15) - 1
"""Maximum side of a mask or network input, and number of queries or classes: as in ``pixels.h``."""
MAX_IMAGE_SIDE = 1 << 30
CHECKED_ALONE, CHECKED_AT_ONCE = 1 << 23, 1 << 20
"""Maximum number of values that a single thread checks faster than several, and values per band."""


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels, in the variant for this CPU.

    Raises:
        MissingDependencyError: they are missing, or of another version or platform.
    """
    fast = cv2.checkHardwareSupport(AVX2) and cv2.checkHardwareSupport(FMA3)
    path = FOLDER / f"pixels-{'avx2' if fast else 'base'}{SUFFIX}"
    try:
        found = ctypes.CDLL(str(path))
        version = found.kernel_version()
        if version != VERSION:
            raise AttributeError(f"it has version {version}, this eomt-deploy needs {VERSION}")
    except (OSError, AttributeError) as error:  # AttributeError: another version
        raise MissingDependencyError(
            f"The compiled part of eomt-deploy cannot be loaded: {error}.",
            fix="Reinstall eomt-deploy; in a clone: pip install -e .",
        ) from error
    return found


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
        raise UsageError(f"{count} masks need {count} scores, got shape {list(scores.shape)}.")
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
) -> tuple[npt.NDArray[np.int32], list[Box]]:
    """The segment of each pixel, and the bounding box of each segment.

    Args:
        owners: int16 [H, W], index of a query or -1.
        segment_of: int32 [K + 1], segment of each query or -1; the last entry is for owner -1.
        threads: see :func:`paint_queries`.

    Returns:
        segment ids int32 [H, W], and the box (x0, y0, x1, y1) of each segment, x1 and y1
        exclusive.
    """
    owners = np.ascontiguousarray(owners, np.int16)
    segment_of = np.ascontiguousarray(segment_of, np.int32)
    count = int(segment_of.max(initial=-1)) + 1
    segments = np.empty(owners.shape, np.int32)

    def label(start: int, end: int) -> npt.NDArray[np.int32]:
        boxes = np.tile(np.array([*owners.shape[::-1], 0, 0], np.int32), (count, 1))
        check_done(library().label_segments(
            pointer(owners), *owners.shape, pointer(segment_of), len(segment_of) - 1, count,
            start, end, pointer(segments), pointer(boxes),
        ))  # fmt: skip
        return boxes

    found = np.stack(in_bands(label, len(owners), TILE_ROWS, threads))
    boxes = np.concatenate([found[:, :, :2].min(axis=0), found[:, :, 2:].max(axis=0)], axis=1)
    return segments, [tuple(box) for box in boxes.tolist()]


class Measure(ctypes.Structure):
    """``struct Measure`` of ``instance.c``."""

    _fields_ = (
        ("area", ctypes.c_int64),
        ("inside", ctypes.c_double),
        ("box", ctypes.c_int32 * 4),
    )


def measure_mask(mask: Float, resize: MaskResize) -> tuple[PackedMask, float]:
    """The mask at image size of mask logits [h, w], and the sum of the probabilities inside it."""
    size = len(resize.down), len(resize.across)
    on = mask > 0
    rows, columns = np.flatnonzero(on.any(axis=1)), np.flatnonzero(on.any(axis=0))
    if len(rows) == 0:
        return PackedMask.empty(size), 0.0
    mask = readable(mask)
    y0, y1 = _reach(resize.down, int(rows[0]), int(rows[-1]))
    x0, x1 = _reach(resize.across, int(columns[0]), int(columns[-1]))
    found = np.empty((y1 - y0, x1 - x0), np.uint8)
    measure = Measure()
    check_done(library().measure_instance(
        pointer(mask), *mask.shape, pointer(resize.down), pointer(resize.across), *size, y0, y1,
        x0, x1, pointer(found), ctypes.byref(measure),
    ))  # fmt: skip
    if measure.area == 0:  # on only in the padding, or only between pixels of the image
        return PackedMask.empty(size), 0.0
    left, top, right, bottom = measure.box
    inner = found[top - y0 : bottom - y0, left - x0 : right - x0]
    bits = np.packbits(inner, axis=1)
    return PackedMask(size, (left, top, right, bottom), measure.area, bits), measure.inside


def _reach(table: Table, first: int, last: int) -> tuple[int, int]:
    """Image rows or columns [start, end) that are interpolated from ``first`` to ``last``."""
    start = np.searchsorted(table["first"], first - 2)
    return int(start), int(np.searchsorted(table["first"], last, side="right"))


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
            "stretch_count", "height", "width", "tile_rows", "tile_columns",
        )),
    )  # fmt: skip


def classify_pixels(
    probabilities: Float, masks: Float, geometry: Geometry, threads: int | None = None
) -> npt.NDArray[np.int32]:
    """The class with the highest mean over the windows of class x mask probability.

    Args:
        probabilities: class probabilities [N, Q, C], without "no object".
        masks: mask logits [N, Q, h, w].
        geometry: geometry of the image, with N network inputs.
        threads: see :func:`paint_queries`.

    Returns:
        class ids int32 [H, W] at image size.
    """
    windows, queries, height, width = masks.shape
    classes = probabilities.shape[-1]
    check_geometry(geometry)
    merged, size = geometry.merged_size, geometry.image_size
    if probabilities.shape != (windows, queries, classes) or windows != geometry.num_inputs:
        raise UsageError(
            f"Class probabilities {list(probabilities.shape)} and mask logits {list(masks.shape)} "
            f"do not match each other or the {geometry.num_inputs} network inputs of the geometry."
        )
    spans = geometry.windows if windows > 1 else ((0, merged[geometry.axis]),)
    padded = np.zeros((windows, classes, -(-queries // SIMD_WIDTH) * SIMD_WIDTH), np.float32)
    padded[..., :queries] = probabilities.transpose(0, 2, 1)
    labels = np.empty(size, np.int32)
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
        tile_rows, tile_columns,
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


def in_bands(
    work: Callable[[int, int], Any], length: int, step: int, threads: int | None
) -> list[Any]:
    """Call ``work`` on bands [start, end) of ``length`` rows, in threads; return its results.

    Each band is a multiple of ``step``, except the last one.
    """
    threads = min(threads or usable_cores(), MAX_THREADS)
    steps = -(-length // step)
    band = max(1, -(-steps // (threads * BANDS_PER_THREAD))) * step
    bands = [(start, min(start + band, length)) for start in range(0, length, band)]
    return in_threads(lambda ends: work(*ends), bands, threads)


def in_threads(work: Callable[[Any], Any], items: list[Any], threads: int | None) -> list[Any]:
    """As ``map``, but in threads, which end with the call: the process can be forked afterwards."""
    threads = min(threads or usable_cores(), MAX_THREADS, len(items))
    if threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def readable(masks: Float) -> Float:
    """Mask logits [..., h, w] as the kernels need them: C-contiguous FP32, h and w at least 3."""
    missing = [(0, 0)] * (masks.ndim - 2) + [(0, max(0, 3 - side)) for side in masks.shape[-2:]]
    if any(end for _, end in missing):
        masks = np.pad(masks, missing, mode="edge")
    return np.ascontiguousarray(masks, dtype=np.float32)


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def check_done(result: int) -> None:
    """Check the return value of a kernel.

    Raises:
        MemoryError: the kernel could not allocate memory.
        UsageError: the kernel rejected its arguments.
    """
    if result == NO_MEMORY:
        raise MemoryError("Not enough memory for the post-processing.")
    if result == WRONG_ARGUMENTS:
        raise UsageError(
            "The sizes or tables passed to the post-processing are inconsistent or too large.",
            why=f"Masks can have sides up to {MAX_SIDE}, and there can be up to {MAX_NUMBER} "
            "queries and classes.",
            fix="Pass the geometry that Processor.preprocess returned for these outputs.",
        )


def check_geometry(geometry: Geometry) -> None:
    """Check that sizes are in range and that windows lie inside the scaled image.

    Raises:
        UsageError: the geometry is inconsistent.
    """
    sides = (*geometry.image_size, *geometry.scaled_size)
    if (
        all(0 < side <= MAX_IMAGE_SIDE for side in sides)
        and all(0 < side <= MAX_SIDE for side in geometry.input_size)
        and geometry.axis in (0, 1)
        and (geometry.windows or _inside(geometry.scaled_size, geometry.input_size))
        and all(
            0 <= start <= geometry.merged_size[geometry.axis] - (end - start)
            and end - start == geometry.input_size[geometry.axis]
            for start, end in geometry.windows
        )
    ):
        return
    raise UsageError(
        f"The geometry is inconsistent: {geometry}.",
        fix="Pass the geometry that Processor.preprocess returned.",
    )


def _inside(size: Size, other: Size) -> bool:
    return size[0] <= other[0] and size[1] <= other[1]


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
