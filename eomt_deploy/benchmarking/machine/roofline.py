"""What the device reaches at best: large matrix products at each precision.

MACs count one multiply and one add: a network of G GMACs does 2 G GFLOP an image.
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
"""Of each precision and size; the best call counts, as it is a peak that we look for."""
GPU_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
CPU_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Peak:
    """Highest measured rate of one precision; ``side`` is that of the square matrices."""

    precision: str
    tflops: float
    side: int

    def to_dict(self) -> dict[str, Any]:
        return {"tflops": round(self.tflops, 4), "side": self.side}


def tflops(macs: float, milliseconds: float) -> float:
    """Rate of ``macs`` multiply-adds done in ``milliseconds``, in TFLOP/s."""
    return 2 * macs / milliseconds / 1e9


def arithmetic(precision: str) -> str:
    """The precision of the matrix products: automatic mixed precision computes in its half."""
    return precision.removeprefix("amp-")


def probe(
    device: str,
    precisions: Sequence[str] | None = None,
    *,
    sides: Sequence[int] | None = None,
    seconds: float = SECONDS,
) -> tuple[dict[str, Peak], dict[str, str]]:
    """Measured peaks by precision, and the reason for each that is missing.

    Args:
        device: ``cpu`` or ``cuda``.
        precisions: of :data:`GPU_PRECISIONS`; None measures what the device is made for.
        sides: of the square matrices.
        seconds: for each precision and size.
    """
    if precisions is None:
        precisions = GPU_PRECISIONS if device == "cuda" else CPU_PRECISIONS
    sides = sides or (GPU_SIDES if device == "cuda" else CPU_SIDES)
    peaks: dict[str, Peak] = {}
    missing: dict[str, str] = {}
    for precision in dict.fromkeys(map(arithmetic, precisions)):
        try:
            rates = _rates(device, precision, sides, seconds)
        except Exception as error:  # a type that this device or build cannot multiply
            missing[precision] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        best = max(rates, key=rates.__getitem__)
        peaks[precision] = Peak(precision, rates[best], best)
    return peaks, missing


def _rates(device: str, precision: str, sides: Sequence[int], seconds: float) -> dict[int, float]:
    """Highest TFLOP/s of products of two square matrices, by their side.

    Sizes that would take far longer than ``seconds`` are left out: a processor without
    instructions for a precision is slow at every size.
    """
    rates: dict[int, float] = {}
    expected = 0.0
    for side in sides:
        if expected > seconds:
            break
        work, timer = _product(device, precision, side)
        times: list[float] = []
        spent = 0.0  # by the clock that measures: another one may stand still
        while len(times) < 2 or spent < 1000 * seconds:
            times.append(timer.measure(work)[0])
            if problem := clock_problem(times[-1:]):
                raise ValueError(problem)
            if len(times) > 1:  # the first one prepares kernels and memory
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
        columns = numbers.t()  # the layout that the GPU's INT8 kernels want
        return lambda: torch._int_mm(numbers, columns), timer
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    # Noise, not ones: multiplying equal numbers takes less power, and so clocks higher.
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
