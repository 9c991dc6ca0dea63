"""Measured peak of a device: large matrix multiplications in each precision.

One MAC is one multiplication and one addition: a network of G GMACs takes 2 G GFLOP per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from eomt_deploy.benchmarking.measure.clock import CPU_TIMER, Timer
from eomt_deploy.benchmarking.measure.statistics import clock_problem

GPU_SIDES = (4096, 8192)
CPU_SIDES = (512, 1024, 2048)
SECONDS = 1.0
"""Measuring time of each precision and size; the fastest call counts."""
GPU_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
CPU_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Peak:
    """Highest measured rate of one precision; ``side`` is the side of the square matrices."""

    precision: str
    tflops: float
    side: int

    def to_dict(self) -> dict[str, Any]:
        # Significant digits: on a busy machine, small matrices reach less than 0.0001.
        return {"tflops": float(f"{self.tflops:.4g}"), "side": self.side}


def tflops(macs: float, milliseconds: float) -> float:
    """Rate of ``macs`` multiply-adds in ``milliseconds``, in TFLOP/s."""
    return 2 * macs / milliseconds / 1e9


def arithmetic(precision: str) -> str:
    """Precision of the matrix multiplications, e.g. ``fp16`` for ``amp-fp16``."""
    return precision.removeprefix("amp-")


def probe(
    device: str,
    precisions: Sequence[str] | None = None,
    *,
    sides: Sequence[int] | None = None,
    seconds: float | None = None,
) -> tuple[dict[str, Peak], dict[str, str]]:
    """Measured peaks by precision, and the reason for each that is missing.

    Args:
        device: ``cpu`` or ``cuda``.
        precisions: names from :data:`GPU_PRECISIONS`; None takes the defaults of the device.
        sides: sides of the square matrices; None takes the defaults of the device.
        seconds: measuring time of each precision and size; None takes :data:`SECONDS`.
    """
    if precisions is None:
        precisions = GPU_PRECISIONS if device == "cuda" else CPU_PRECISIONS
    seconds = seconds or SECONDS
    sides = sides or (GPU_SIDES if device == "cuda" else CPU_SIDES)
    peaks: dict[str, Peak] = {}
    missing: dict[str, str] = {}
    for precision in dict.fromkeys(map(arithmetic, precisions)):
        try:
            rates = _rates(device, precision, sides, seconds)
        except Exception as error:  # this device or build cannot multiply the type
            missing[precision] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        best = max(rates, key=rates.__getitem__)
        peaks[precision] = Peak(precision, rates[best], best)
    return peaks, missing


def _rates(device: str, precision: str, sides: Sequence[int], seconds: float) -> dict[int, float]:
    """Highest TFLOP/s of the product of two square matrices, by their side.

    A size is left out if it would take far longer than ``seconds``: a processor without
    instructions for a precision is slow at every size.
    """
    rates: dict[int, float] = {}
    expected = 0.0
    for side in sides:
        if expected > seconds:
            break
        work, timer = _product(device, precision, side)
        times: list[float] = []
        spent = 0.0  # by the measuring clock, because another clock may not advance
        while len(times) < 2 or spent < 1000 * seconds:
            times.append(timer.measure(work)[0])
            if problem := clock_problem(times[-1:]):
                raise ValueError(problem)
            if len(times) > 1:  # the first call prepares kernels and memory
                spent += times[-1]
        rates[side] = tflops(side**3, min(times))
        expected = 8 * min(times) / 1000
    return rates


def _product(device: str, precision: str, side: int) -> tuple[Callable[[], object], Timer]:
    if find_spec("torch") is None:
        if device != "cpu" or precision != "fp32":
            raise ValueError("PyTorch is not installed")
        matrix = np.ones((side, side), np.float32)
        return lambda: matrix @ matrix, CPU_TIMER
    import torch

    from eomt_deploy.benchmarking.measure.gpu_clock import TorchEventTimer

    timer: Timer = TorchEventTimer() if device == "cuda" else CPU_TIMER
    if precision == "int8":
        numbers = torch.randint(-128, 127, (side, side), dtype=torch.int8, device=device)
        columns = numbers.t()  # column-major, as the GPU's INT8 kernels require
        return lambda: torch._int_mm(numbers, columns), timer
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    # Random values: multiplying equal numbers takes less power, which permits higher clocks.
    left, right = (
        torch.randn(side, side, device=device).to(types.get(precision, torch.float32))
        for _ in range(2)
    )

    def product() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            return left @ right
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product, timer
