"""The compiled kernels of ``native/``: loading, threads, and checks of their arguments."""

from __future__ import annotations

import ctypes
import math
import platform
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.devices import usable_cores
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.processing.geometry import Geometry, Size

Float = npt.NDArray[np.float32]

FOLDER = Path(__file__).parent / "native"
SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}.get(platform.system(), ".so")
AVX2, FMA3 = 11, 12
"""OpenCV's numbers of these CPU features."""

BANDS_PER_THREAD = 4
"""More than 1, because the work per band differs: some show only sky."""
MAX_THREADS = 16
VERSION = 3
"""Version of the kernels' arguments; must equal ``kernel_version`` in ``outputs.c``."""
NO_MEMORY, WRONG_ARGUMENTS = -1, -2
MAX_SIDE, MAX_NUMBER = 1 << 15, (1 << 15) - 1
"""Maximum side of a mask or network input, and number of queries or classes: as in ``pixels.h``."""
MAX_IMAGE_SIDE = 1 << 30
MAX_PIXELS = (1 << 32) - 1
"""Maximum number of pixels of an image: runs of masks are stored as 32-bit indices."""


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
    """As ``map``, but in this thread and others.

    The others end with the call, so that the process can be forked afterwards.
    """
    threads = min(threads or usable_cores(), MAX_THREADS, len(items))
    if threads <= 1:
        return [work(item) for item in items]
    waiting = deque(enumerate(items))
    results: list[Any] = [None] * len(items)

    def run() -> None:
        while True:
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[number] = work(item)
            except BaseException:
                waiting.clear()  # the other threads stop
                raise

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(run) for _ in range(threads - 1)]
        run()
    for other in others:
        other.result()
    return results


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
        and math.prod(geometry.image_size) <= MAX_PIXELS
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
