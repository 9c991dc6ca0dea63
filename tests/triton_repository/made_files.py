"""Model files that no library reads, with valid descriptions."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import tiny

from eomt_deploy.sidecar import Sidecar, write_sidecar


def make_engine(folder, batch=(1, 4, 8), **changes):
    """An engine file that no library reads, with a valid description."""
    path = folder / "street.engine"
    path.write_bytes(b"plan")
    fixed = batch[0] if batch[0] == batch[2] else None
    sidecar = Sidecar(
        spec=tiny.spec("semantic", "fp16", fixed),
        target="tensorrt",
        library_version="10.13.0.35",
        precision="fp16",
        batch=batch,
        compute_capabilities=("8.9",),
        gpu="NVIDIA L4",
        driver="580.65.06",
        version_compatible=False,
        hardware_compatibility="none",
        stripped=False,
        plan_bytes=4,
        plan_sha256=hashlib.sha256(b"plan").hexdigest(),
        onnx="street.onnx",
        onnx_sha256="0" * 64,
        settings={},
    )
    write_sidecar(path, replace(sidecar, **changes))
    return path


def make_xml(folder, task="panoptic", batch=None):
    spec = tiny.spec(task, batch=batch).to_json().replace("&", "&amp;").replace('"', "&quot;")
    path = folder / "street.xml"
    path.write_text(
        f'<net name="m"><rt_info><framework><eomt_deploy.spec value="{spec}" /></framework>'
        "</rt_info></net>"
    )
    path.with_suffix(".bin").write_bytes(b"weights")
    return path
