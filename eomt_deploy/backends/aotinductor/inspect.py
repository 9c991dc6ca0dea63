"""`inspect` for ``.pt2`` files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.inspection import Inspection, model_rows, origin_rows
from eomt_deploy.model_file import parse_spec
from eomt_deploy.package_metadata import attention_kernels, read_metadata
from eomt_deploy.spec import METADATA_KEY


def inspect(path: Path) -> Inspection:
    """Inspect an AOTInductor package without loading its machine code."""
    metadata = read_metadata(path)
    spec = parse_spec(metadata, path)
    built = {k.lower(): v for k, v in metadata.items() if k != METADATA_KEY}
    size = path.stat().st_size
    kernels = attention_kernels(path)
    attention = ", ".join(f"{count} calls of {name}" for name, count in kernels.items())
    rows = model_rows(spec) | {
        "compiled for": ", ".join(f"{k.removeprefix('aoti_')} {v}" for k, v in built.items() if v),
        "attention": attention or "matrix products and softmax",
        "file": f"{size / 1e6:.1f} MB",
        **origin_rows(spec),
    }
    return Inspection(
        {
            "path": str(path),
            "spec": asdict(spec),
            "bytes": size,
            "attention": dict(kernels),
            **built,
        },
        rows,
    )
