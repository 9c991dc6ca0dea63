"""`eomt-deploy inspect`: what an exported file says of itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from eomt_deploy.artifact import TensorInfo, parse_spec, read_artifact, read_xml
from eomt_deploy.backends.aotinductor.engine import SUFFIX as PACKAGE
from eomt_deploy.backends.aotinductor.engine import read_metadata
from eomt_deploy.backends.registry import BACKENDS, choose_backend
from eomt_deploy.backends.tensorrt.compatibility import check_machine, this_machine
from eomt_deploy.backends.tensorrt.config import SUFFIX, XML
from eomt_deploy.cli.console import print_json, stdout
from eomt_deploy.errors import ArtifactError, DeviceError, MissingDependencyError
from eomt_deploy.sidecar import check_plan, known_target, read_sidecar
from eomt_deploy.spec import METADATA_KEY, ModelSpec

SHOWN_CLASSES = 12
SHOWN_OPERATORS = 8


def inspect(
    artifact: Annotated[Path, typer.Argument(help="A file that eomt-deploy wrote.")],
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show task, classes, sizes, precision and origin of an exported model."""
    if artifact.suffix.lower() == SUFFIX:
        data, rows = _engine(artifact)
    elif artifact.suffix.lower() == PACKAGE:
        data, rows = _package(artifact)
    elif artifact.suffix.lower() == XML:
        data, rows = _openvino(artifact)
    else:
        data, rows = _onnx(artifact)
    if json:
        print_json(data)
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    stdout.print(table)


def _onnx(artifact: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts of an ONNX file for JSON, and as rows."""
    facts = read_artifact(artifact)
    operators = [f"{count} {name}" for name, count in facts.operators.items()]
    rows = {
        **_model(facts.spec),
        **{f"in  {t.name}": _shape(t) for t in facts.inputs},
        **{f"out {t.name}": _shape(t) for t in facts.outputs},
        "graph": f"opset {facts.opset}, {sum(facts.operators.values())} operators: "
        + ", ".join(operators[:SHOWN_OPERATORS]) + (", …" if len(operators) > SHOWN_OPERATORS else ""),  # noqa: E501
        "file": f"{facts.bytes / 1e6:.1f} MB",
        "runs here with": _backend(artifact),
        **_origin(facts.spec),
    }  # fmt: skip
    return asdict(facts) | {"path": str(facts.path), "backend": rows["runs here with"]}, rows


def _backend(artifact: Path) -> str:
    """The run-time that is chosen here, or what is missing."""
    try:
        return choose_backend(artifact, None)
    except MissingDependencyError as error:
        return f"nothing; {error.fix}"


def _openvino(artifact: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an .xml of OpenVINO says of itself, for JSON and as rows."""
    spec, arithmetic = read_xml(artifact)
    weights = artifact.with_suffix(".bin")
    size = sum(file.stat().st_size for file in (artifact, weights) if file.is_file())
    remarks = _openvino_remarks(arithmetic)
    rows = _model(spec) | {
        "computes in": arithmetic or "as the export says",
        "file": f"{size / 1e6:.1f} MB with {weights.name}",
        "runs here with": _backend(artifact),
        **_remarks(remarks),
        **_origin(spec),
    }
    data = {"path": str(artifact), "spec": asdict(spec), "arithmetic": arithmetic, "bytes": size}
    return data | {"remarks": list(remarks)}, rows


def _openvino_remarks(arithmetic: str | None) -> tuple[str, ...]:
    """What opening it here would remark on the arithmetic that `build` chose."""
    if arithmetic in (None, "f32") or not BACKENDS["openvino"].installed:
        return ()
    from eomt_deploy.backends.openvino.engine import able, arithmetic_remarks, openvino

    used = arithmetic if arithmetic in able(openvino.Core()) else "f32"
    return arithmetic_remarks(arithmetic, used)


def _remarks(remarks: tuple[str, ...]) -> dict[str, str]:
    return {"remarks": "\n".join(remarks)} if remarks else {}


def _engine(artifact: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What stands beside an engine, for JSON and as rows; the plan itself is not opened."""
    if not artifact.is_file():
        raise ArtifactError(f"There is no engine at {artifact}.")
    facts = read_sidecar(artifact)
    check_plan(artifact, facts, whole=True)
    gpu = f"{facts.gpu}, driver {facts.driver or 'unknown'}" if facts.gpu else "no GPU"
    try:
        runs = "yes"
        remarks = check_machine(facts, this_machine(known_target(facts)), engine=artifact)
    except (DeviceError, MissingDependencyError) as error:
        runs, remarks = f"no: {error.what}", ()
    level = facts.hardware_compatibility.replace("_", " ")
    rows = _model(facts.spec) | {
        "batch": "least {}, optimal {}, largest {}".format(*facts.batch),
        "precision": facts.precision,
        "engine": f"{facts.target} {facts.library_version}"
        + (" and later" if facts.version_compatible else ""),
        "runs on": f"compute capability {', '.join(facts.compute_capabilities)}"
        + ("" if level == "none" else f" ({level})"),
        "runs here": runs,
        **_remarks(remarks),
        "built on": gpu,
        "built from": f"{facts.onnx} (SHA-256 {facts.onnx_sha256[:12]}…)",
        "settings": ", ".join(f"{k} {v}" for k, v in facts.settings.items()),
        "file": f"{facts.plan_bytes / 1e6:.1f} MB" + (", without weights" * facts.stripped),
        **_origin(facts.spec),
    }
    data = {"path": str(artifact), "runs_here": runs == "yes", "remarks": list(remarks)}
    return asdict(facts) | data, rows


def _package(artifact: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an AOTInductor package says of itself; its machine code is not loaded."""
    metadata = read_metadata(artifact)
    spec = parse_spec(metadata, artifact)
    built = {k.lower(): v for k, v in metadata.items() if k != METADATA_KEY}
    size = artifact.stat().st_size
    rows = _model(spec) | {
        "compiled for": ", ".join(f"{k.removeprefix('aoti_')} {v}" for k, v in built.items() if v),
        "file": f"{size / 1e6:.1f} MB",
        **_origin(spec),
    }
    return {"path": str(artifact), "spec": asdict(spec), "bytes": size, **built}, rows


def _origin(spec: ModelSpec) -> dict[str, str]:
    return {key.replace("_", " "): value for key, value in spec.provenance.items()}


def _model(spec: ModelSpec) -> dict[str, str]:
    """What every artifact tells of its model."""
    backbone = spec.backbone
    names = [c.name + ("*" if c.thing else "") for c in spec.classes]
    rest = len(names) - SHOWN_CLASSES
    thresholds = spec.thresholds
    return {
        "model": spec.name,
        "task": spec.task,
        "input size": f"{spec.image_size[0]}x{spec.image_size[1]} ({spec.resize})",
        "batch": str(spec.batch or "free"),
        "precision": spec.precision,
        "backbone": f"{backbone.family}, {backbone.width} wide, {backbone.depth} blocks, "
        f"{backbone.heads} heads, {backbone.mlp}, {backbone.registers} registers, patch "
        f"{spec.patch_size}",
        "parameters": f"{backbone.parameters / 1e6:.1f} M",
        "queries": f"{spec.num_queries}, in the last {spec.num_blocks} blocks",
        "classes": f"{len(names)} (* thing): " + ", ".join(names[:SHOWN_CLASSES])
        + (f", and {rest} more" if rest > 0 else ""),
        "thresholds": f"score {thresholds.score:g}, mask {thresholds.mask:g}, "
        f"overlap {thresholds.overlap:g}" if spec.task == "panoptic" else
        f"score {thresholds.score:g}" if spec.task == "instance" else "none",
    }  # fmt: skip


def _shape(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
