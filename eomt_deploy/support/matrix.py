"""The cells of the support matrix, and the trial of each on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.backend import Backend, Builder, load
from eomt_deploy.backends.building import config_fields
from eomt_deploy.backends.certification import open_reference
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.backends.verification import compare
from eomt_deploy.errors import EomtDeployError
from eomt_deploy.precision import PRECISIONS, engine_limits
from eomt_deploy.sources import built_in_images
from eomt_deploy.spec import TASKS, Task
from eomt_deploy.support.networks import FAMILIES, write_model
from eomt_deploy.units import percent

Status = Literal["verified", "builds", "not here", "not possible", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""``verified``: built, run, and equal to the graph in FP32 within the limits of its precision.
``builds``: the file can be built, but not run on this machine."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        family: one of :data:`~eomt_deploy.support.networks.FAMILIES`.
        task: task of the model. It changes the description and the steps around the network, not
            the graph; so the matrix has one task per family and precision, and all in turn.
        precision: precision of the model.
        backend: name of the backend.
    """

    family: str
    task: Task
    precision: str
    backend: str


@dataclass(frozen=True)
class Finding:
    """What a trial showed.

    Attributes:
        cell: the combination.
        status: see :data:`STATUSES`.
        detail: the error of the worst logit, or the reason.
    """

    cell: Cell
    status: Status
    detail: str

    def to_dict(self) -> dict[str, str]:
        return {**asdict(self.cell), "status": self.status, "detail": self.detail}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        names = ("family", "task", "precision", "backend")
        return cls(Cell(**{name: data[name] for name in names}), data["status"], data["detail"])


def cells(backends: Sequence[str] = tuple(BACKENDS)) -> Iterator[Cell]:
    """All combinations; all backends get the same model, one after the other."""
    for number, (family, precision) in enumerate(product(FAMILIES, PRECISIONS)):
        for backend in backends:
            yield Cell(family, TASKS[number % len(TASKS)], precision, backend)


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
            backend = BACKENDS[cell.backend]
            if cell.precision not in backend.precisions:
                yield Finding(cell, "not possible", f"{backend.title} has no {cell.precision}")
            elif reason := obstacle(backend):
                yield Finding(cell, "not here", reason)
            else:
                try:
                    yield _try(cell, backend, Path(folder))
                except EomtDeployError as error:
                    yield Finding(cell, "failed", error.what)


def obstacle(backend: Backend) -> str:
    """Why this machine can neither build for a backend nor run it; empty if it can."""
    if not backend.installed:
        return f"{backend.package} is not installed"
    if backend.build is not None:
        if not backend.build.problem:
            return ""
        found = load(backend.build.problem)()
        return "" if isinstance(found, str) else str(found.what)
    problem = load(backend.problem)("cpu") if backend.problem else None
    return "" if problem is None else str(problem.what)


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
    if problems:
        return Finding(cell, "failed", "; ".join(problems))
    return Finding(cell, "verified", _error(result.relative_max))


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
        return Finding(cell, "builds", "nothing on this machine runs it")
    return Finding(cell, "verified", _error(report.certificate.relative_error))


def _error(relative: float) -> str:
    """The error of the worst logit as text, with one digit."""
    return percent(float(f"{relative:.0e}"))
