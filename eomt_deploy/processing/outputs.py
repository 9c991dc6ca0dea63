"""Do a network's outputs belong to this model and image, and are they numbers at all?"""

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
    """Compare shapes with those of the model, for an image of this geometry.

    Raises:
        UsageError: they are of another model or image.
    """
    count = geometry.num_inputs
    expected = (
        (count, spec.num_queries, len(spec.classes) + 1),
        (count, spec.num_queries, *spec.mask_size),
    )
    if (class_logits, mask_logits) != expected:
        raise UsageError(
            f"Outputs of shape {list(class_logits)} and {list(mask_logits)} do not belong "
            f"to {spec.name}: expected {list(expected[0])} and {list(expected[1])}."
        )


def check_finite(
    spec: ModelSpec,
    *logits: npt.NDArray[Any],
    backend: str | None = None,
    image: str | None = None,
    threads: int | None = None,
) -> None:
    """Refuse logits that are infinite or not numbers: no result of them means anything.

    All values are looked at, also those of queries that no result rests on.

    Args:
        logits: of any float type and shape.
        backend: that computed them, for the message.
        image: that they are of, likewise.
        threads: CPU threads; None takes all.

    Raises:
        VerificationError: one of them is.
    """
    if not are_finite(*logits, threads=threads):
        raise not_finite(spec, backend=backend, image=image)


def are_finite(*logits: npt.NDArray[Any], threads: int | None = None) -> bool:
    """Whether no value is infinite or not a number."""
    return all(_finite(values, threads) for values in logits)


def not_finite(
    spec: ModelSpec, *, backend: str | None = None, image: str | None = None
) -> VerificationError:
    """The error of a model whose logits are not finite."""
    facts = ", ".join(filter(None, (spec.precision, backend)))
    place = f" on {image}" if image else ""
    return VerificationError(
        f"{spec.name} ({facts}) gives NaN or infinite logits{place}.",
        fix="Export again with a precision whose range its values fit, such as fp32.",
    )


def _finite(values: npt.NDArray[Any], threads: int | None) -> bool:
    if values.dtype == np.float32:
        return not pixels.any_not_finite(np.ascontiguousarray(values), threads)
    if values.dtype.itemsize > 4:  # it must also be finite as the FP32 that all work is done in
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return bool(np.isfinite(values).all())
