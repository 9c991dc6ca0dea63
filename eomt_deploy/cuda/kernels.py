"""Our CUDA kernels: compiled by NVRTC on first use and stored in the cache folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from eomt_deploy.cuda.device import Device
from eomt_deploy.cuda.nvrtc import cached_cubin

SOURCE = Path(__file__).with_name("kernels.cu")
BLOCK = 256
"""Threads per block; a multiple of the warp size, which counting in the kernels requires."""
CHUNK = 32
"""Classes per thread of ``score_classes``, as in ``kernels.cu``."""

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
"""Parameters of each kernel: P pointer, i int, q long long, f float."""
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
        binary: compiled kernels (cubin).

    Raises:
        DeviceError: the GPU cannot load the kernels.
    """

    def __init__(self, device: Device, binary: bytes) -> None:
        self._device = device
        module = device.load(binary)
        self._functions = {name: device.function(module, name) for name in SIGNATURES}

    def launch(
        self, name: str, threads: int, *arguments: float, stream: int, rows: int = 1
    ) -> None:
        """Launch a kernel with ``threads`` threads (rounded up to blocks) in each of ``rows`` block
        rows.

        Args:
            arguments: pointers and numbers, in the order of ``kernels.cu``.
        """
        typed = [
            ARGUMENT_TYPES[letter](value)
            for letter, value in zip(SIGNATURES[name], arguments, strict=True)
        ]
        grid = (-(-threads // BLOCK), rows, 1)
        self._device.launch(self._functions[name], grid, (BLOCK, 1, 1), typed, stream)


@cache
def load_kernels(device: Device) -> Kernels:
    """Load the kernels for this GPU from the cache folder, or compile them.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: NVRTC does not support this GPU, or the GPU cannot load the kernels.
    """
    return Kernels(device, cached_cubin(SOURCE.read_text(), device.compute_capability))
