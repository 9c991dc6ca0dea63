"""`inspect` for ``.onnx`` files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.inspection import Inspection, backend_here, model_rows, origin_rows
from eomt_deploy.model_file import TensorInfo, read_model_file

SHOWN_OPERATORS = 8


def inspect(path: Path) -> Inspection:
    """Inspect an ONNX file."""
    facts = read_model_file(path)
    operators = [f"{count} {name}" for name, count in facts.operators.items()]
    rows = {
        **model_rows(facts.spec),
        **{f"in  {t.name}": _shape(t) for t in facts.inputs},
        **{f"out {t.name}": _shape(t) for t in facts.outputs},
        "graph": f"opset {facts.opset}, {sum(facts.operators.values())} operators: "
        + ", ".join(operators[:SHOWN_OPERATORS]) + (", …" if len(operators) > SHOWN_OPERATORS else ""),  # noqa: E501
        "file": f"{facts.bytes / 1e6:.1f} MB",
        "runs here with": backend_here(path),
        **origin_rows(facts.spec),
    }  # fmt: skip
    data = asdict(facts) | {"path": str(facts.path), "backend": rows["runs here with"]}
    return Inspection(data, rows)


def _shape(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
