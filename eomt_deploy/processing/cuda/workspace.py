"""What all steps of :class:`CudaProcessor` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Array, Device
from eomt_deploy.cuda.scratch import Bundle, Scratch
from eomt_deploy.processing.cuda.kernels import BLOCK, Kernels
from eomt_deploy.processing.geometry import Geometry, Size
from eomt_deploy.processing.pixels import mask_resize
from eomt_deploy.processing.tables import logit_table
from eomt_deploy.result import Segmentation

VALUES_PER_THREAD = 16
"""Number of logits that a thread of ``find_not_finite`` checks."""
ROWS_PER_BLOCK = BLOCK // 32
"""Number of rows that a block of ``softmax`` processes."""
NOT_FINITE = ((1,), np.uint64)
"""Field of a bundle for :meth:`GpuWorkspace.find_not_finite`."""


class Pending(NamedTuple):
    """A result that the stream is computing.

    Attributes:
        fetched: small arrays, complete when the stream has finished; ``not_finite`` is above 0 if a
            logit is infinite or NaN, and then the others are meaningless.
        finish: makes the result, after the stream has finished.
    """

    fetched: dict[str, Array]
    finish: Callable[[], Segmentation]


@dataclass(frozen=True)
class GpuWorkspace:
    """A device, its kernels, one stream, and the buffers of that stream."""

    device: Device
    kernels: Kernels
    stream: int
    scratch: Scratch

    def launch(self, name: str, threads: int, *arguments: float, rows: int = 1) -> None:
        """Launch a kernel for ``threads`` threads in each of ``rows`` block rows."""
        self.kernels.launch(name, threads, *arguments, stream=self.stream, rows=rows)

    def launch_blocks(self, name: str, blocks: int, *arguments: float) -> None:
        """Launch a kernel that is written for blocks."""
        self.kernels.launch(name, blocks * BLOCK, *arguments, stream=self.stream)

    def taps(self, name: str, source: Size, target: Size) -> tuple[int, int]:
        """Pointers to the tables of one resize of logits: vertical, horizontal."""
        down, across = self.scratch.tables(
            name, (source, target), lambda: list(map(logit_table, source, target))
        )
        return down.pointer, across.pointer

    def spans(self, mask_size: Size, geometry: Geometry) -> tuple[int, int]:
        """Pointers to the tables from masks to the image: vertical, horizontal."""

        def make() -> list[Array]:
            resize = mask_resize(mask_size, geometry)
            return [resize.down, resize.across]

        down, across = self.scratch.tables("mask to image", (mask_size, geometry), make)
        return down.pointer, across.pointer

    def starts(self, geometry: Geometry) -> int:
        """Pointer to int32 [N]: start of each network input along the axis."""
        starts = tuple(start for start, _ in geometry.windows) or (0,)
        (array,) = self.scratch.tables("starts", starts, lambda: [np.array(starts, np.int32)])
        return array.pointer

    def find_not_finite(self, bundle: Bundle, *arrays: DeviceArray) -> None:
        """Count infinite and NaN logits in field ``not_finite`` of a bundle."""
        for logits in arrays:
            count = int(np.prod(logits.shape))
            threads = -(-count // VALUES_PER_THREAD)
            self.launch(
                "find_not_finite", threads,
                logits.pointer, logits.dtype == np.float16, count, threads,
                bundle.pointer("not_finite"),
            )  # fmt: skip

    def softmax(self, logits: DeviceArray) -> DeviceArray:
        """Probabilities float32 of the shape of ``logits``, over the last axis."""
        probabilities = self.scratch.array("probabilities", logits.shape, np.float32)
        *outer, columns = logits.shape
        rows = int(np.prod(outer))
        self.launch_blocks(
            "softmax", -(-rows // ROWS_PER_BLOCK),
            logits.pointer, logits.dtype == np.float16, rows, columns, probabilities.pointer,
        )  # fmt: skip
        return probabilities

    def find_best(self, probabilities: DeviceArray, columns: int) -> tuple[int, int]:
        """Pointers to the best of the first ``columns`` classes, and to its probability."""
        *outer, stride = probabilities.shape
        rows = int(np.prod(outer))
        ids = self.scratch.array("best classes", (rows,), np.int32)
        scores = self.scratch.array("best scores", (rows,), np.float32)
        self.launch(
            "find_best", rows,
            probabilities.pointer, rows, columns, stride, ids.pointer, scores.pointer,
        )  # fmt: skip
        return ids.pointer, scores.pointer


def maps(masks: DeviceArray) -> tuple[int, int, int, int]:
    """The fields of ``struct Maps``."""
    height, width = masks.shape[-2:]
    return masks.pointer, masks.dtype == np.float16, height, width
