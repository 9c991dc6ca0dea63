"""Table of the precisions. The export writes the precision of a model into its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Data type of the expensive layers of a network, and limits for its verification.

    Attributes:
        dtype: type of the unquantised layers, as named by numpy and PyTorch.
        quantized: whether weights and activations are scaled to 8 bits; the rest computes in FP16.
        compute_capability: minimum compute capability of NVIDIA GPUs with tensor cores for it.
        max_relative_error: maximum error of a logit in an export, relative to the largest logit.
            It allows the rounding of the format and detects a broken layer.
        min_agreement: minimum share of queries with the same class, and of mask pixels with the
            same sign, in an export.
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
"""Precisions by name, the widest first."""
QUANTIZED = tuple(name for name, precision in PRECISIONS.items() if precision.quantized)
UNQUANTIZED = tuple(name for name, precision in PRECISIONS.items() if not precision.quantized)
AUTOCAST = ("amp-fp16", "amp-bf16")
"""FP32 weights under PyTorch's autocast, as in training code: only in benchmarks."""


def engine_limits(precision: str, arithmetic: str | None = None) -> Precision:
    """Limits for an engine that is compared with its own graph in FP32.

    Quantised values are rounded in the graph, too. What differs is the rounding of the rest.

    Args:
        precision: precision of the model.
        arithmetic: what the engine computes in, if that differs: a precision, or ``tf32``.
    """
    names = {"tf32": "fp16"} | dict.fromkeys(QUANTIZED, "bf16")
    limits = [PRECISIONS[names.get(k, k)] for k in (precision, arithmetic or precision)]
    return max(limits, key=lambda limit: limit.max_relative_error)


def computes_in(precision: str, arithmetic: str) -> str:
    """The types that a model computes in, as text: ``int8 and fp32`` for quantised layers.

    Args:
        precision: precision of the model.
        arithmetic: what the engine computes in. On a CPU, FP8 values are converted to it.
    """
    return f"int8 and {arithmetic}" if precision == "int8" != arithmetic else arithmetic


def slower_than_fp16(precision: str, compute_capability: str | None) -> tuple[str, ...]:
    """A remark if a precision is slower than FP16 on the GPU of this machine.

    Args:
        precision: precision of the model.
        compute_capability: that of the GPU, e.g. ``9.0``; None without a GPU.
    """
    if precision != "int8" or compute_capability != "9.0":
        return ()
    return (
        "INT8 is slower than FP16 on GPUs of compute capability 9.0 (Hopper): on an NVIDIA H200, "
        "the four matrix products of a layer of EoMT-L took 83.4 µs in INT8, 69.5 µs in FP16 and "
        "53.7 µs in FP8. Use --precision fp8 for this GPU.",
    )


def wider(precision: str) -> tuple[str, ...]:
    """The precisions that are wider than ``precision``."""
    names = tuple(PRECISIONS)
    return names[: names.index(precision)]
