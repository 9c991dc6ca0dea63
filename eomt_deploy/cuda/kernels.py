"""Our CUDA kernels: compiled for a GPU by NVRTC when first needed, kept in the cache folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from eomt_deploy.cuda.device import Device
from eomt_deploy.cuda.nvrtc import cached_cubin

SOURCE = Path(__file__).with_name("kernels.cu")
BLOCK = 256
"""Threads of a block; a whole number of warps, as the counting of the kernels needs."""
CHUNK = 32
"""Classes of one thread of ``score_classes``, as in ``kernels.cu``."""

SIGNATURES = {
    "resample_across": "PiiiPPiP",
    "resample_down": "PiiPPiP",
    "place_inputs": "PiiPiiiiiP",
    "find_not_finite": "PiqqP",
    "paint_queries": "PiqiPPPPiqPPifPP",
    "measure_masks": "PiqiPPPPiqPPPP",
    "score_classes": "PiqiiPPPiiiiiiPiiP",
    "choose_classes": "PiiiiPPiiqP",
}
"""Parameters of each kernel: pointer P, int i, long long q, float f."""
ARGUMENT_TYPES: dict[str, type[np.generic]] = {
    "P": np.uint64,
    "i": np.int32,
    "q": np.int64,
    "f": np.float32,
}


class Kernels:
    """The kernels of ``kernels.cu`` on one device, whose primary context must be current.

    Args:
        device: the GPU.
        binary: compiled kernels.

    Raises:
        DeviceError: the GPU does not take the kernels.
    """

    def __init__(self, device: Device, binary: bytes) -> None:
        self._device = device
        module = device.load(binary)
        self._functions = {name: device.function(module, name) for name in SIGNATURES}

    def launch(
        self, name: str, threads: int, *arguments: float, stream: int, rows: int = 1
    ) -> None:
        """Start a kernel on ``threads`` threads (rounded up) in each of ``rows`` block rows.

        Args:
            arguments: pointers and numbers in the order of ``kernels.cu``.
        """
        typed = [
            ARGUMENT_TYPES[letter](value)
            for letter, value in zip(SIGNATURES[name], arguments, strict=True)
        ]
        grid = (-(-threads // BLOCK), rows, 1)
        self._device.launch(self._functions[name], grid, (BLOCK, 1, 1), typed, stream)


@cache
def load_kernels(device: Device) -> Kernels:
    """The kernels for this GPU, loaded once: from the cache folder, or compiled.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: NVRTC does not know this GPU, or the GPU does not take the kernels.
    """
    return Kernels(device, cached_cubin(SOURCE.read_text(), device.compute_capability))
