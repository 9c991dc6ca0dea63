"""`inspect` for ``.pte`` files, from their description."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.executorch.build import CALLS, OPERATORS, OUTSIDE
from eomt_deploy.backends.executorch.engine import read_description
from eomt_deploy.backends.executorch.partitioners import DELEGATES
from eomt_deploy.backends.inspection import (
    Inspection,
    backend_here,
    certificate_rows,
    model_rows,
    origin_rows,
)
from eomt_deploy.errors import ModelFileError
from eomt_deploy.sidecar import check_plan


def inspect(path: Path) -> Inspection:
    """Inspect the description of a program; the program itself is verified, not loaded."""
    if not path.is_file():
        raise ModelFileError(f"There is no model at {path}.", fix="Check the path.")
    facts = read_description(path)
    check_plan(path, facts, full=True)
    settings = facts.settings
    calls, outside = settings.get(CALLS, "unknown"), settings.get(OUTSIDE, "unknown")
    rows = model_rows(facts.spec) | {
        "built with": f"ExecuTorch {facts.library_version}",
        "delegate": f"{DELEGATES[settings['partitioner']].title}, calls per inference: {calls}, "
        f"operators outside: {outside} ({settings.get(OPERATORS, 'unknown')})",
        "runs here with": backend_here(path),
        **certificate_rows(facts.certificate),
        "built from": f"{facts.onnx} (SHA-256 {facts.onnx_sha256[:12]}…)",
        "file": f"{facts.plan_bytes / 1e6:.1f} MB",
        **origin_rows(facts.spec),
    }
    return Inspection(asdict(facts) | {"path": str(path)}, rows)
