"""The precisions: one table. The precision of a model is decided in its graph, at export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """What the heavy layers of a network compute in.

    Attributes:
        dtype: numpy's and PyTorch's name of the type that unquantised layers compute in.
        quantized: weights and activations are scaled to 8 bits; the rest computes in FP16.
        compute_capability: the first NVIDIA GPUs whose tensor cores compute in it.
        max_relative_error: limit for an export: largest error of a logit over the largest logit.
            Loose enough for the nature of the format, tight enough for a broken layer.
        min_agreement: limit for an export: share of queries with the same class, and of mask
            pixels on the same side of zero.
    """

    dtype: str
    max_relative_error: float
    min_agreement: float
    quantized: bool = False
    compute_capability: str = "8.0"


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("float32", 1e-3, 0.999),
    "bf16": Precision("bfloat16", 2e-1, 0.95),
    "fp16": Precision("float16", 5e-2, 0.98),
    "fp8": Precision("float16", 5e-1, 0.9, quantized=True, compute_capability="8.9"),
    "int8": Precision("float16", 5e-1, 0.9, quantized=True),
}
"""By name, the widest first."""
QUANTIZED = tuple(name for name, precision in PRECISIONS.items() if precision.quantized)
UNQUANTIZED = tuple(name for name, precision in PRECISIONS.items() if not precision.quantized)
AUTOCAST = ("amp-fp16", "amp-bf16")
"""FP32 weights under PyTorch's autocast, as in training code: only in benchmarks."""


def wider(precision: str) -> tuple[str, ...]:
    """The precisions that are wider than one."""
    names = tuple(PRECISIONS)
    return names[: names.index(precision)]
