"""`inspect` for Core ML packages. Does not need coremltools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.coreml.build import UNITS, weights_text
from eomt_deploy.backends.inspection import Inspection, model_rows, origin_rows
from eomt_deploy.errors import ModelFileError
from eomt_deploy.model_file import CORE_ML_WEIGHTS, read_core_ml
from eomt_deploy.sidecar import sha256


def inspect(path: Path) -> Inspection:
    """Inspect a package.

    Raises:
        ModelFileError: it is not a package that eomt-deploy wrote, or its weights are missing or
            those of another package.
    """
    spec, facts = read_core_ml(path)
    weights = path / CORE_ML_WEIGHTS
    if not weights.is_file() or sha256(weights) != facts.get("weights_sha256"):
        raise ModelFileError(
            f"{weights} is missing, damaged, or belongs to another package.",
            fix="Copy the package again, or build it again: eomt-deploy build",
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    known = {name: facts.get(name, "unknown") for name in ("operators", "weight_types")}
    rows = model_rows(spec) | {
        "weights": f"{weights_text(facts.get('weights', 'model'))}: {known['weight_types']}",
        "operations": known["operators"],
        "file": f"{size / 1e6:.1f} MB",
        "runs on": f"{UNITS.get(spec.precision, 'CPU')}, with iOS 18 or macOS 15",
        "evaluation": facts.get("evaluation", "unknown"),
        **origin_rows(spec),
    }
    return Inspection({"path": str(path), "spec": asdict(spec), "bytes": size, **facts}, rows)
