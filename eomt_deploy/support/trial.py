"""The trial of cells of the support matrix: build, run, and compare with the graph in FP32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.backend import Backend, Builder, load
from eomt_deploy.backends.building import config_fields
from eomt_deploy.backends.certification import open_reference
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.backends.verification import compare
from eomt_deploy.devices import may_overflow_in_int8
from eomt_deploy.errors import EomtDeployError, MissingDependencyError, VerificationError
from eomt_deploy.precision import computes_in, engine_limits
from eomt_deploy.sources import built_in_images
from eomt_deploy.support.matrix import Cell, Finding, prospect, run_obstacle
from eomt_deploy.support.networks import write_model

OVERFLOW = (
    "this CPU has no VNNI instructions: OpenVINO adds INT8 products in 16 bits, where the sums of "
    "random weights overflow, so all INT8 errors are large"
)


def try_cells(
    wanted: Sequence[Cell], progress: Callable[[Cell], None] = lambda cell: None
) -> Iterator[Finding]:
    """Build and run each combination that this machine can.

    Args:
        wanted: combinations.
        progress: called before each of them.
    """
    with TemporaryDirectory() as folder:
        for cell in wanted:
            progress(cell)
            status, reason = prospect(cell.backend, cell.precision)
            if status == "not possible" or status == "not here":
                yield Finding(cell, status, reason)
                continue
            try:
                yield _try(cell, BACKENDS[cell.backend], Path(folder))
            except MissingDependencyError as error:
                yield Finding(cell, "not here", error.what)
            except VerificationError as error:
                yield _different(cell, error.what)
            except EomtDeployError as error:
                yield Finding(cell, "failed", error.what)


def _try(cell: Cell, backend: Backend, folder: Path) -> Finding:
    name = f"{cell.family}-{cell.precision}-{cell.task}".replace(" ", "-")
    onnx = folder / f"{name}.onnx"
    if not onnx.exists():
        write_model(cell.family, cell.task, cell.precision, onnx)
    if backend.build is not None:
        return _build(cell, backend.build, onnx)
    path = onnx if ".onnx" in backend.suffixes else onnx.with_suffix(backend.suffixes[0])
    if path != onnx:
        write_model(cell.family, cell.task, cell.precision, path)
    engine = open_engine(path, backend=cell.backend, device="cpu", cache=False)
    with engine, open_reference(onnx) as reference:
        result = compare(engine, reference, built_in_images(), batches=True)
        problems = result.problems(engine_limits(cell.precision, engine.arithmetic))
        types = computes_in(cell.precision, engine.arithmetic or cell.precision)
    if problems:
        return _different(cell, "; ".join(problems))
    return Finding(cell, "verified", "", result.relative_max, types)


def _build(cell: Cell, builder: Builder, onnx: Path) -> Finding:
    """Build a file; the build compares it with its ONNX model if this machine can run it."""
    kind = load(builder.config)
    # Two backends share one configuration.
    target = {"target": cell.backend} if "target" in config_fields(kind) else {}
    name = "index" if builder.folder else "built"
    output = onnx.with_suffix("") / f"{name}{builder.suffix}"
    output.parent.mkdir(exist_ok=True)
    config = kind(onnx, output, **target)
    report = load(builder.run)(config, lambda text, share: None)
    if report.certificate is None:
        reason = run_obstacle(BACKENDS[cell.backend]) or "the build did not run it"
        return Finding(cell, "builds", reason)
    types = report.certificate.backend.rpartition(" in ")[2]
    return Finding(cell, "verified", "", report.certificate.relative_error, types)


def _different(cell: Cell, problem: str) -> Finding:
    """The finding for logits that exceed the limits."""
    if (cell.backend, cell.precision) == ("openvino", "int8") and may_overflow_in_int8():
        return Finding(cell, "inexact", OVERFLOW)
    return Finding(cell, "failed", problem)
