"""The cells of the support matrix, what this machine can do about each, and what a trial showed.

This module does not import torch; :mod:`eomt_deploy.support.trial` tries the cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

from eomt_deploy.backends.backend import NO_GPU, Backend, load
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.devices import current_gpu
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.spec import TASKS, Task
from eomt_deploy.support.families import FAMILIES
from eomt_deploy.units import percent

Status = Literal["verified", "builds", "not here", "not possible", "inexact", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""``verified``: built, run, and equal to the graph in FP32 within the limits of its precision.
``builds``: the file can be built, but not run on this machine.
``not here``: the backend, or what it needs, is missing on this machine.
``not possible``: the backend does not have this precision.
``inexact``: not equal to the graph, for a known reason.
``failed``: not equal to the graph, or the build failed."""
FACTOR = 3.0
"""An error that is larger than the earlier one by this factor is a regression."""
NOISE = 1e-5
"""Relative errors below this come from the order of FP32 sums, which may change at any time."""
QUANTIZED_NOISE = 2e-2
"""The same for FP8 and INT8, where one value that is rounded up, not down, changes many logits."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        family: one of :data:`~eomt_deploy.support.families.FAMILIES`.
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
        reason: why it is not verified; empty if it is.
        error: the error of the worst logit, divided by the largest logit; None if it did not run.
        arithmetic: what the engine computed in, e.g. ``int8 and fp32``; empty if it did not run.
    """

    cell: Cell
    status: Status
    reason: str = ""
    error: float | None = None
    arithmetic: str = ""

    @property
    def text(self) -> str:
        """The reason, or the error with one digit and what it was computed in."""
        if self.error is None or self.reason:
            return self.reason
        error = percent(float(f"{self.error:.0e}"))
        computed = self.arithmetic not in ("", self.cell.precision)
        return f"{error}, computed in {self.arithmetic}" if computed else error

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        return asdict(self.cell) | {
            "status": self.status, "reason": self.reason, "error": self.error,
            "arithmetic": self.arithmetic,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """The finding that :meth:`to_dict` described."""
        rest = dict(data)
        cell = Cell(*(rest.pop(name) for name in ("family", "task", "precision", "backend")))
        return cls(cell, **rest)


def cells(backends: Iterable[str] = (), families: Iterable[str] = ()) -> list[Cell]:
    """Combinations; all backends get the same model, one after the other.

    Args:
        backends: only these backends; empty: all.
        families: only these families; empty: all.

    Raises:
        UsageError: a name is unknown.
    """
    chosen = {"backend": set(backends), "family": set(families)}
    for kind, known in (("backend", BACKENDS), ("family", FAMILIES)):
        if unknown := sorted(chosen[kind] - set(known)):
            raise UsageError(
                f"There is no {kind} {unknown[0]!r} in the matrix.",
                fix=f"Known: {', '.join(known)}.",
            )
    return [
        Cell(family, TASKS[number % len(TASKS)], precision, backend)
        for number, (family, precision) in enumerate(product(FAMILIES, PRECISIONS))
        for backend in BACKENDS
        if family in (chosen["family"] or FAMILIES) and backend in (chosen["backend"] or BACKENDS)
    ]


class Prospect(NamedTuple):
    """What this machine can do about a precision with a backend, and the reason if not all."""

    status: Literal["can verify", "can build", "not here", "not possible"]
    reason: str = ""


def prospect(name: str, precision: str) -> Prospect:
    """What a trial on this machine can show, without a trial.

    Args:
        name: name of the backend.
        precision: precision of the model.
    """
    backend = BACKENDS[name]
    if precision not in backend.precisions:
        reason = f"eomt-deploy has no {precision.upper()} for {backend.title}"
        return Prospect("not possible", reason)
    if reason := obstacle(backend):
        return Prospect("not here", reason)
    if reason := run_obstacle(backend):
        return Prospect("can build", reason)
    return Prospect("can verify")


def obstacle(backend: Backend) -> str:
    """Why this machine can neither build for a backend nor run it; empty if it can."""
    if not backend.installed:
        return f"{backend.package} is not installed"
    if backend.build is None:
        return run_obstacle(backend)
    if not backend.build.problem:
        return ""
    found = load(backend.build.problem)()
    return "" if isinstance(found, str) else str(found.what)


def run_obstacle(backend: Backend) -> str:
    """Why this machine cannot run the files of an installed backend; empty if it can.

    Files that need no build are tried on the CPU, others on the device that they are built for.
    """
    if not backend.engine:
        return "its files do not run in Python"
    what = ""
    for device in backend.devices if backend.build is not None else ("cpu",):
        if device == "cuda" and current_gpu() is None:
            what = NO_GPU
            continue
        problem = load(backend.problem)(device) if backend.problem else None
        if problem is None:
            return ""
        what = str(problem.what)
    return what


def regressions(
    before: Iterable[Finding], after: Iterable[Finding], *, same_cpu: bool
) -> Iterator[str]:
    """What was verified, and is now worse; one line each.

    A cell that cannot be tried now is not worse. Errors are compared only if the engine computes
    in the same types with the same instructions: BF16, FP16 and INT8 differ between CPUs.

    Args:
        before, after: findings; cells that are only in one of them are left out.
        same_cpu: whether both are from CPUs with the same instructions.
    """
    earlier = {finding.cell: finding for finding in before}
    for now in after:
        was = earlier.get(now.cell)
        if was is None or was.status != "verified" or now.status in ("not here", "inexact"):
            continue
        names = " ".join(asdict(now.cell).values())
        if now.status != "verified":
            # A build does not show an error on a machine that cannot run the file.
            if now.status == "builds" and run_obstacle(BACKENDS[now.cell.backend]):
                continue
            yield f"{names}: was verified, now {now.status}: {now.text}"
        elif same_cpu and was.arithmetic == now.arithmetic:
            quantized = PRECISIONS[now.cell.precision].quantized
            noise = QUANTIZED_NOISE if quantized else NOISE
            if (now.error or 0) > max(FACTOR * (was.error or 0), noise):
                yield f"{names}: the error was {was.text}, now {now.text}"
