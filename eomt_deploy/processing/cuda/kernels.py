"""Our CUDA kernels: compiled by NVRTC on first use and stored in the cache folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from eomt_deploy.cuda.device import Device
from eomt_deploy.cuda.nvrtc import cached_cubin

FOLDER = Path(__file__).with_name("source")
FILES = (
    "base.cu", "arithmetic.h", "maps.cu", "images.cu", "classes.cu", "panoptic.cu", "instance.cu",
    "semantic.cu",
)  # fmt: skip
"""The files are compiled as one, in this order."""
BLOCK = 256
"""Threads per block, as in ``base.cu``."""

SIGNATURES = {
    "resample_across": "PiiiPPiP",
    "resample_down": "PiiPPiP",
    "place_inputs": "PiiPiiiiiP",
    "find_not_finite": "PiqqP",
    "softmax": "PiqiP",
    "find_best": "PqiiPP",
    "list_queries": "PPiifPPPP",
    "paint_queries": "PiiiPPiiPPPifPPP",
    "join_queries": "PiPPPdPP",
    "label_segments": "PPqiP",
    "rank_queries": "PiiifPPPPPP",
    "measure_masks": "PiiiPPiiiPPPP",
    "count_runs": "PiiiPPP",
    "place_rows": "PiPP",
    "write_runs": "PiiiPPPqP",
    "classify_tiles": "PiiiiPPPiiiiiPPiiPPPPiiPP",
}
"""Parameters of each kernel: P pointer, i int, q long long, f float, d double."""
ARGUMENT_TYPES: dict[str, type[np.generic]] = {
    "P": np.uint64,
    "i": np.int32,
    "q": np.int64,
    "f": np.float32,
    "d": np.float64,
}


@cache
def source() -> str:
    """The CUDA source of all kernels."""
    return "\n".join(
        f'#line 1 "{name}"\n{(FOLDER / name).read_text(encoding="utf-8")}' for name in FILES
    )


class Kernels:
    """The kernels on one device, whose primary context must be current.

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
            arguments: pointers and numbers, in the order of the kernel's parameters.
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
    return Kernels(device, cached_cubin(source(), device.compute_capability))
