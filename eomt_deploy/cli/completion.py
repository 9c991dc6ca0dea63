"""Values that the TAB key completes. Files are completed by the shell itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import get_args

from typer.models import ParameterInfo

from eomt_deploy import catalog
from eomt_deploy.backends.coreml.config import WEIGHTS
from eomt_deploy.backends.executorch.config import PARTITIONERS
from eomt_deploy.backends.registry import BACKENDS, builders, engines
from eomt_deploy.benchmarking.paper.suite_file import suites
from eomt_deploy.data_files import entries
from eomt_deploy.drawing import PALETTES
from eomt_deploy.exporting.config import METHODS, Attention
from eomt_deploy.precision import AUTOCAST, PRECISIONS, UNQUANTIZED
from eomt_deploy.spec import Task
from eomt_deploy.support.families import FAMILIES

Names = Callable[[], Iterable[str]]


def _formats() -> Iterable[str]:
    from eomt_deploy.evaluation.datasets import FORMATS

    return FORMATS


def _scopes() -> Iterable[str]:
    from eomt_deploy.benchmarking.paper.suite_config import SCOPES

    return SCOPES


def _scenarios() -> Iterable[str]:
    from eomt_deploy.benchmarking.measure.scenarios import SCENARIOS

    return SCENARIOS


def _runtimes() -> Iterable[str]:
    from eomt_deploy.benchmarking.paper.runtimes import runtimes

    return runtimes()


def _datasets() -> set[str]:
    return {entry.dataset for entry in catalog.checkpoints().values()}


def _forms() -> Iterable[str]:
    from eomt_deploy.triton.options import FORMS

    return FORMS


def _targets() -> set[str]:
    suffixes = (backend.build.suffix for backend in BACKENDS.values() if backend.build)
    return {name for suffix in suffixes for name in builders(suffix)}


COMPLETIONS: dict[str, Names] = {
    "arithmetic": lambda: UNQUANTIZED,
    "attention": lambda: get_args(Attention),
    "backbone": lambda: ("tiny", "small", "base", "large", "giant"),
    "backend": engines,
    "checkpoint": catalog.checkpoints,
    "classes": catalog.class_lists,
    "dataset": _datasets,
    "device": lambda: ("cpu", "cuda"),
    "expect_precision": lambda: PRECISIONS,
    "family": lambda: FAMILIES,
    "form": _forms,
    "format": _formats,
    "hardware_compatibility": lambda: ("none", "ampere-plus", "same-compute-capability"),
    "method": lambda: METHODS,
    "name": catalog.checkpoints,
    "palette": lambda: PALETTES,
    "partitioner": lambda: PARTITIONERS,
    "precision": lambda: PRECISIONS,
    "profile": lambda: (path.stem for path in entries("engines")),
    "runtime": _runtimes,
    "sampling": lambda: ("grid_sample", "triton"),
    "scenario": _scenarios,
    "scope": _scopes,
    "suite": suites,
    "target": _targets,
    "task": lambda: get_args(Task),
}
"""Values by parameter; a command can have its own, e.g. ``bench precision``."""
COMPLETIONS |= {
    "bench precision": lambda: (*UNQUANTIZED, *AUTOCAST),
    "build weights": lambda: WEIGHTS,
    "build arithmetic": lambda: ("auto", *UNQUANTIZED),
    "doctor backend": lambda: BACKENDS,
    "serve log": lambda: ("text", "json", "off"),
}


def with_completion(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """Add the values of :data:`COMPLETIONS` to the parameters of a command, by their names."""
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        names = COMPLETIONS.get(f"{name} {parameter.name}", COMPLETIONS.get(parameter.name))
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if names and isinstance(info, ParameterInfo):
                info.autocompletion = _starting(names)
    # The annotations are evaluated once, so that typer gets these objects.
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return command


def _starting(names: Names) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return sorted(name for name in names() if name.startswith(incomplete))

    return complete
