"""The steps of :class:`CudaProcessor`: kernel launches, and results from their outputs.

Kernels do the work on pixels; all decisions use the same code as on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Device
from eomt_deploy.cuda.kernels import CHUNK, Kernels
from eomt_deploy.cuda.scratch import Scratch
from eomt_deploy.masks import RunMask
from eomt_deploy.processing.compiled import Float
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.instance import Measured, instance_result, rank_queries
from eomt_deploy.processing.panoptic import Painted, choose_queries, nothing, panoptic_result
from eomt_deploy.processing.semantic import class_probabilities
from eomt_deploy.processing.tables import bands, image_table, logit_table, shrinks_down_first
from eomt_deploy.result import Segmentation, label_type
from eomt_deploy.spec import ModelSpec, Thresholds

SCORE_BYTES = 64 << 20
"""Maximum memory for class scores: all of them, [C, H, W], can take gigabytes."""
VALUES_PER_THREAD = 16
"""Number of logits that a thread of ``find_not_finite`` checks."""
SUM_UNIT = 2.0**-24
"""Unit of the fixed-point sums of ``measure_masks``."""


@dataclass(frozen=True)
class GpuWorkspace:
    """Shared by all steps: a device, its kernels, one stream, and the buffers of that stream."""

    device: Device
    kernels: Kernels
    stream: int
    scratch: Scratch

    def launch(self, name: str, threads: int, *arguments: float, rows: int = 1) -> None:
        self.kernels.launch(name, threads, *arguments, stream=self.stream, rows=rows)

    def taps(self, name: str, source: Size, target: Size) -> tuple[int, int]:
        """Pointers to the resize tables of logits: vertical, horizontal."""
        return (
            self._taps(f"{name} y", source[0], target[0]),
            self._taps(f"{name} x", source[1], target[1]),
        )

    def _taps(self, name: str, source: int, target: int) -> int:
        (table,) = self.scratch.tables(
            name, (source, target), lambda: [logit_table(source, target)]
        )
        return table.pointer

    def starts(self, geometry: Geometry) -> int:
        """Pointer to int32 [N]: start of each network input along the axis."""
        starts = tuple(start for start, _ in geometry.windows) or (0,)
        (array,) = self.scratch.tables("starts", starts, lambda: [np.array(starts, np.int32)])
        return array.pointer


def resample(
    workspace: GpuWorkspace, image: DeviceArray, geometry: Geometry, swap: bool, inputs: DeviceArray
) -> None:
    """Resize an image uint8 [H, W, 3] as Pillow does (bilinear), and write the network inputs.

    Args:
        workspace: device, kernels, stream and buffers.
        image: the image.
        geometry: geometry of the image.
        swap: exchange the first and the last channel.
        inputs: uint8 [N, H, W, 3], written.
    """
    sides = (0, 1) if shrinks_down_first(geometry.image_size, geometry.scaled_size) else (1, 0)
    for axis in sides:
        image = _resample_side(workspace, image, axis, geometry.scaled_size[axis])
    number, height, width, _ = inputs.shape
    workspace.launch(
        "place_inputs", number * height * width,
        image.pointer, *geometry.scaled_size, workspace.starts(geometry), geometry.axis,
        number, height, width, swap, inputs.pointer,
    )  # fmt: skip


def _resample_side(
    workspace: GpuWorkspace, image: DeviceArray, axis: int, length: int
) -> DeviceArray:
    """The image uint8 [H, W, 3] with one side resized; unchanged if it has that length."""
    height, width, _ = image.shape
    old = image.shape[axis]
    if old == length:
        return image
    bounds, weights = workspace.scratch.tables(
        f"image {axis}", (old, length), lambda: image_table(old, length)
    )
    table = bounds.pointer, weights.pointer, weights.shape[1]
    if axis == 0:
        result = workspace.scratch.array("image 0", (length, width, 3), np.uint8)
        workspace.launch(
            "resample_down", length * width * 3,
            image.pointer, length, width, *table, result.pointer,
        )  # fmt: skip
    else:
        result = workspace.scratch.array("image 1", (height, length, 3), np.uint8)
        workspace.launch(
            "resample_across", height * length,
            image.pointer, width, height, length, *table, result.pointer,
        )  # fmt: skip
    return result


def find_not_finite(workspace: GpuWorkspace, logits: DeviceArray) -> npt.NDArray[np.uint64]:
    """Check for logits that are infinite or NaN.

    Returns:
        uint64 [1] in pinned memory, ready when the stream has finished; above 0 if there are any.
    """
    found = workspace.scratch.zeros("not finite", (1,), np.uint64)
    count = math.prod(logits.shape)
    threads = -(-count // VALUES_PER_THREAD)
    workspace.launch(
        "find_not_finite", threads,
        logits.pointer, logits.dtype == np.float16, count, threads, found.pointer,
    )  # fmt: skip
    return workspace.scratch.fetch("not finite", found)


def panoptic(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: Float,
    masks: DeviceArray,
    geometry: Geometry,
    thresholds: Thresholds,
) -> Segmentation:
    """Panoptic result from class logits [1, Q, C+1] and mask logits [1, Q, h, w] on the GPU."""
    size = geometry.image_size
    chosen = choose_queries(class_logits[0], thresholds.score)
    count = len(chosen.queries)
    if count == 0:
        return nothing(size, spec.classes)
    queries = workspace.scratch.upload("queries", chosen.queries.astype(np.int32))
    scores = workspace.scratch.upload("scores", chosen.scores)
    owners = workspace.scratch.array("labels", size, np.int16)
    areas = workspace.scratch.zeros("areas", (3, count), np.uint64)
    pixels = size[0] * size[1]
    workspace.launch(
        "paint_queries", pixels,
        *_maps(masks), *_image_taps(workspace, spec, geometry), size[1], pixels,
        queries.pointer, scores.pointer, count, thresholds.mask, owners.pointer, areas.pointer,
    )  # fmt: skip
    owner = workspace.scratch.fetch("labels", owners)
    counts = workspace.scratch.fetch("areas", areas)
    workspace.device.synchronize(workspace.stream)
    painted = Painted(owner, counts.astype(np.int64))
    return panoptic_result(chosen, painted, spec.classes, thresholds.overlap)


def instance(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: Float,
    masks: DeviceArray,
    geometry: Geometry,
    thresholds: Thresholds,
) -> Segmentation:
    """Instance result from class logits [1, Q, C+1] and mask logits [1, Q, h, w] on the GPU."""
    size = geometry.image_size
    candidates = rank_queries(class_logits[0], thresholds.score)
    chosen = list(dict.fromkeys(candidate.query for candidate in candidates))
    if not chosen:
        return instance_result([], {}, thresholds.score, size, spec.classes)
    pixels = size[0] * size[1]
    octets = -(-pixels // 8)
    queries = workspace.scratch.upload("queries", np.array(chosen, np.int32))
    bits = workspace.scratch.array("bits", (len(chosen), octets), np.uint8)
    areas = workspace.scratch.zeros("areas", (2, len(chosen)), np.uint64)
    workspace.launch(
        "measure_masks", octets,
        *_maps(masks), *_image_taps(workspace, spec, geometry), size[1], pixels,
        queries.pointer, bits.pointer, areas.pointer, areas.rows(1, 2).pointer,
        rows=len(chosen),
    )  # fmt: skip
    packed = workspace.scratch.fetch("bits", bits)
    counts = workspace.scratch.fetch("areas", areas)
    workspace.device.synchronize(workspace.stream)
    found = np.unpackbits(packed, axis=1, count=pixels).view(bool).reshape(-1, *size)
    measured = {
        query: Measured.of(RunMask.from_mask(mask), inside * SUM_UNIT)
        for query, mask, inside in zip(chosen, found, counts[1].tolist(), strict=True)
    }
    return instance_result(candidates, measured, thresholds.score, size, spec.classes)


def semantic(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: Float,
    masks: DeviceArray,
    geometry: Geometry,
) -> Segmentation:
    """Semantic result from class logits [N, Q, C+1] and mask logits [N, Q, h, w] on the GPU."""
    size = geometry.image_size
    merged = geometry.merged_size
    classes = len(spec.classes)
    windows, queries, _ = class_logits.shape
    chunks = -(-classes // CHUNK)
    padded = np.zeros((windows, queries, chunks * CHUNK), np.float32)
    padded[..., :classes] = class_probabilities(class_logits)
    probabilities = workspace.scratch.upload("probabilities", padded)
    input_taps = workspace.taps("input", spec.mask_size, geometry.input_size)
    merged_taps = workspace.taps("merged", merged, size)
    labels = workspace.scratch.array("labels", size, np.int16)
    max_rows = SCORE_BYTES // (classes * merged[1] * 4)
    for band in bands(logit_table(merged[0], size[0]), max_rows):
        plane = band.source_rows * merged[1]
        scores = workspace.scratch.array("class scores", (classes, plane), np.float32)
        workspace.launch(
            "score_classes", plane,
            *_maps(masks), queries, *input_taps, workspace.starts(geometry), windows,
            geometry.input_size[geometry.axis], geometry.axis, band.source_start,
            band.source_rows, merged[1], probabilities.pointer, chunks * CHUNK, classes,
            scores.pointer,
            rows=chunks,
        )  # fmt: skip
        pixels = (band.end - band.start) * size[1]
        workspace.launch(
            "choose_classes", pixels,
            scores.pointer, classes, band.source_start, band.source_rows, merged[1],
            *merged_taps, band.start, size[1], pixels, labels.pointer,
        )  # fmt: skip
    found = workspace.scratch.fetch("labels", labels)
    workspace.device.synchronize(workspace.stream)
    return Segmentation(
        task="semantic", size=size, classes=spec.classes, labels=found.astype(label_type(classes))
    )


def _maps(masks: DeviceArray) -> tuple[int, int, int, int]:
    """The fields of ``struct Maps``."""
    height, width = masks.shape[-2:]
    return masks.pointer, masks.dtype == np.float16, height * width, width


def _image_taps(workspace: GpuWorkspace, spec: ModelSpec, geometry: Geometry) -> tuple[int, ...]:
    """Pointers to the resize tables from mask to network input, and from there to the image."""
    return (
        *workspace.taps("input", spec.mask_size, geometry.input_size),
        *workspace.taps("image", geometry.scaled_size, geometry.image_size),
    )
