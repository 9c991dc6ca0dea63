"""`inspect` for OpenVINO's ``.xml`` files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.inspection import (
    Inspection,
    backend_here,
    certificate_rows,
    model_rows,
    origin_rows,
    remark_rows,
)
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.certificate import Certificate
from eomt_deploy.model_file import read_xml
from eomt_deploy.sidecar import sha256


def inspect(path: Path) -> Inspection:
    """Inspect an OpenVINO model."""
    spec, arithmetic, onnx, onnx_sha256, certificate = read_xml(path)
    weights = path.with_suffix(".bin")
    size = sum(file.stat().st_size for file in (path, weights) if file.is_file())
    remarks = _arithmetic_remarks(arithmetic)
    belongs = certificate is None or _are_weights_of(certificate, weights)
    rows = model_rows(spec) | {
        "computes in": arithmetic or "the precision of the export",
        "file": f"{size / 1e6:.1f} MB with {weights.name}",
        "runs here with": backend_here(path),
        **certificate_rows(certificate, belongs=belongs),
        **remark_rows(remarks),
        **origin_rows(spec),
    }
    data = {"path": str(path), "spec": asdict(spec), "arithmetic": arithmetic, "bytes": size}
    origin = {"onnx": onnx, "onnx_sha256": onnx_sha256}
    checked = {
        "certificate": asdict(certificate) if certificate else None,
        "certificate_belongs_to_weights": belongs if certificate else None,
    }
    return Inspection(data | origin | checked | {"remarks": list(remarks)}, rows)


def _are_weights_of(certificate: Certificate, weights: Path) -> bool:
    """Whether a certificate was made with these weights."""
    return weights.is_file() and certificate.weights_sha256 == sha256(weights)


def _arithmetic_remarks(arithmetic: str | None) -> tuple[str, ...]:
    """The remark that opening it would give if this CPU lacks the arithmetic of the build."""
    if arithmetic in (None, "fp32") or not BACKENDS["openvino"].installed:
        return ()
    from eomt_deploy.backends.openvino.engine import able, arithmetic_remarks, open_core

    used = arithmetic if arithmetic in able(open_core()) else "fp32"
    return arithmetic_remarks(arithmetic, used)
