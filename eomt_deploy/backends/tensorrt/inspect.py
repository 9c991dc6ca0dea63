"""`inspect` for engines, from their sidecar."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.inspection import (
    Inspection,
    certificate_rows,
    model_rows,
    origin_rows,
    remark_rows,
)
from eomt_deploy.backends.tensorrt.compatibility import check_machine, this_machine
from eomt_deploy.errors import DeviceError, MissingDependencyError, ModelFileError
from eomt_deploy.sidecar import check_plan, known_target, read_sidecar


def inspect(path: Path) -> Inspection:
    """Inspect the sidecar of an engine; the engine itself is only verified, not loaded."""
    if not path.is_file():
        raise ModelFileError(f"There is no engine at {path}.", fix="Check the path.")
    facts = read_sidecar(path)
    check_plan(path, facts, full=True)
    gpu = f"{facts.gpu}, driver {facts.driver or 'unknown'}" if facts.gpu else "no GPU"
    try:
        runs = "yes"
        remarks = check_machine(facts, this_machine(known_target(facts)), engine=path)
    except (DeviceError, MissingDependencyError) as error:
        runs, remarks = f"no: {error.what}", ()
    level = facts.hardware_compatibility.replace("_", " ")
    rows = model_rows(facts.spec) | {
        "batch": "minimum {}, optimal {}, maximum {}".format(*facts.batch),
        "precision": facts.precision,
        "engine": f"{facts.target} {facts.library_version}"
        + (" and later" if facts.version_compatible else ""),
        "runs on": f"compute capability {', '.join(facts.compute_capabilities)}"
        + ("" if level == "none" else f" ({level})"),
        "runs here": runs,
        **certificate_rows(facts.certificate),
        **remark_rows(remarks),
        "built on": gpu,
        "built from": f"{facts.onnx} (SHA-256 {facts.onnx_sha256[:12]}…)",
        "settings": ", ".join(f"{k} {v}" for k, v in facts.settings.items()),
        "file": f"{facts.plan_bytes / 1e6:.1f} MB" + (", without weights" * facts.stripped),
        **origin_rows(facts.spec),
    }
    data = {"path": str(path), "runs_here": runs == "yes", "remarks": list(remarks)}
    return Inspection(asdict(facts) | data, rows)
