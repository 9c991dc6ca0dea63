"""Checks of a network's outputs: shapes and finite values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import UsageError, VerificationError
from eomt_deploy.processing import pixels
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.spec import ModelSpec

Shape = tuple[int, ...]


def check_outputs(
    spec: ModelSpec, class_logits: Shape, mask_logits: Shape, geometry: Geometry
) -> None:
    """Compare output shapes with those that the model has for an image of this geometry.

    Raises:
        UsageError: the shapes differ.
    """
    count = geometry.num_inputs
    expected = (
        (count, spec.num_queries, len(spec.classes) + 1),
        (count, spec.num_queries, *spec.mask_size),
    )
    if (class_logits, mask_logits) != expected:
        raise UsageError(
            f"Outputs of shapes {list(class_logits)} and {list(mask_logits)} do not belong "
            f"to {spec.name}, which has {list(expected[0])} and {list(expected[1])} for this "
            "image.",
            fix="Pass the outputs that this model computed for this image, and the geometry that"
            " `preprocess` returned with it.",
        )


def check_finite(
    spec: ModelSpec,
    *logits: npt.NDArray[Any],
    backend: str | None = None,
    image: str | None = None,
    threads: int | None = None,
) -> None:
    """Reject infinite and NaN logits, because results from them are meaningless.

    All values are checked, even those of queries that do not contribute to a result.

    Args:
        logits: arrays of any float type and shape.
        backend: backend that computed them, for the message.
        image: image that they belong to, for the message.
        threads: number of CPU threads; None uses all.

    Raises:
        VerificationError: a value is infinite or NaN.
    """
    if not are_finite(*logits, threads=threads):
        raise not_finite(spec, backend=backend, image=image)


def are_finite(*logits: npt.NDArray[Any], threads: int | None = None) -> bool:
    """Whether all values are finite."""
    return all(_finite(values, threads) for values in logits)


def not_finite(
    spec: ModelSpec, *, backend: str | None = None, image: str | None = None
) -> VerificationError:
    """The error for a model whose logits are not finite."""
    facts = ", ".join(filter(None, (spec.precision, backend)))
    place = f" on {image}" if image else ""
    return VerificationError(
        f"{spec.name} ({facts}) gives NaN or infinite logits{place}.",
        fix="Export again with a precision of a larger range, e.g. fp32.",
    )


def _finite(values: npt.NDArray[Any], threads: int | None) -> bool:
    if values.dtype == np.float32:
        return not pixels.any_not_finite(np.ascontiguousarray(values), threads)
    if values.dtype.itemsize > 4:  # post-processing uses FP32: values must be finite there, too
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return bool(np.isfinite(values).all())
