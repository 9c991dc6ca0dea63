"""The certificate of a built model file: on which device it was compared with its ONNX model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from eomt_deploy.fields import (
    MAX_NAME,
    SHA256,
    Record,
    check_fields,
    integer,
    matching,
    optional,
    read_object,
    share,
    text,
)
from eomt_deploy.units import logit_error

WHAT = "The certificate"
UNCHECKED = (
    "This file was never compared with its ONNX model. `eomt-deploy verify MODEL --save` does that."
)
"""Remark on a built file without a certificate."""


@dataclass(frozen=True)
class Certificate:
    """Comparison of a model file with its ONNX model in FP32, which passed.

    Attributes:
        images: number of images compared.
        inputs: number of network inputs compared.
        relative_error: maximum error of class or mask logits over the largest of these logits.
        class_agreement: share of queries with the same best class.
        mask_agreement: share of mask pixels with the same sign.
        label_agreement: share of mask pixels with the same best class, weighted by its score.
        max_relative_error, min_agreement: the limits.
        backend: backend, version, and what it computes in.
        device: name of the CPU or GPU.
        driver: version of the NVIDIA driver; None without one.
        created: time of the comparison in UTC, ISO 8601.
        weights_sha256: SHA-256 of the weights, if they are in another file than the certificate.
    """

    images: int
    inputs: int
    relative_error: float
    class_agreement: float
    mask_agreement: float
    label_agreement: float
    max_relative_error: float
    min_agreement: float
    backend: str
    device: str
    driver: str | None
    created: str
    weights_sha256: str | None = None

    def __str__(self) -> str:
        return (
            f"{logit_error(self.relative_error, self.max_relative_error)}; "
            f"equal classes {self.class_agreement:.2%}, mask signs {self.mask_agreement:.2%}, "
            f"labels {self.label_agreement:.2%} (minimum {self.min_agreement:.1%})"
        )

    @property
    def place(self) -> str:
        """Device, driver and backend."""
        driver = f" with driver {self.driver}" if self.driver else ""
        return f"{self.device}{driver}, {self.backend}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, content: str) -> Certificate:
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelFileError: it is not JSON, or a field is missing or invalid.
        """
        data = read_object(content, WHAT, FIX)
        check_fields(CERTIFICATE, data, WHAT, FIX)
        return cls(**data)


FIX = "Build the file again, or run `eomt-deploy verify` with --save."
_SHARE = share()
_NAME = text(MAX_NAME)
CERTIFICATE = Record(
    Certificate,
    {
        "images": integer(1, 2**31),
        "inputs": integer(1, 2**31),
        "relative_error": _SHARE,
        "class_agreement": _SHARE,
        "mask_agreement": _SHARE,
        "label_agreement": _SHARE,
        "max_relative_error": _SHARE,
        "min_agreement": _SHARE,
        "backend": _NAME,
        "device": _NAME,
        "driver": optional(_NAME),
        "created": matching(
            "a time such as 2026-01-31T12:00:00Z",
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
        ),
        "weights_sha256": optional(SHA256),
    },
)
"""Rules for the fields of a certificate."""
