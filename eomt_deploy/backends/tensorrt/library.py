"""Lazy import, version check and log capture for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.sidecar import Target

MODULES: dict[Target, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES: dict[Target, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MINIMUM_VERSION: dict[Target, tuple[int, int]] = {"tensorrt": (10, 0), "tensorrt-rtx": (1, 2)}
"""Minimum versions: the first whose strongly typed networks accept our graphs."""
OPERATORS: dict[str, tuple[int, int]] = {"Attention": (10, 14)}
"""Minimum TensorRT version of operators that only some graphs have."""
TESTED_FROM = (10, 12)
KNOWN_FAULTS = (
    "TensorRT {version} is older than 10.12. TensorRT 10.3 and 10.4 are reported to compute vision "
    "transformers wrongly (NVIDIA/TensorRT issues 4419, 4723, 4742): rely on the comparison with "
    "the ONNX model, and do not use --no-check."
)
"""Warning of a build with an older version."""

WARNING = 2
"""Numeric severity of a warning; smaller numbers are more severe."""
KEPT_LINES = 1000

# Logged without a GPU by calls that do not need one, and when a second builder is created.
NOISE = ("Thread context has not been set", "logger passed into createInfer", "catchCudaError")
# "IBuilder::x: Error Code 1: Myelin ([f.cpp:3: g] text In h at /_src/f.cpp:2012)" -> the text
PREFIX = re.compile(r"^(\S+: )?Error Code \d+: |^\[[\w.]+::\w+::\d+\] Error Code \d+: ")
KIND = re.compile(r"^(?:Myelin|API Usage Error|Internal Error) \((.*)\)$")
PLACE = re.compile(r"\[[\w.]+:\d+: \w+\] |[\w.]+:\d+: (?=CHECK)| ?In \S+ at /\S+?:\d+")


@dataclass(frozen=True)
class Line:
    """One line of the library's log; ``severity`` is its ``ILogger.Severity`` in lower case."""

    severity: str
    text: str


def installed(target: Target) -> bool:
    """Whether the library is installed; it is not imported."""
    return find_spec(MODULES[target]) is not None


def load(target: Target) -> Any:
    """Import the library.

    Raises:
        MissingDependencyError: it is not installed, broken or too old.
    """
    name, fix = NAMES[target], f"pip install 'eomt-deploy[{target}]'"
    try:
        module = import_module(MODULES[target])
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{name} is not installed or cannot be loaded.", why=str(error), fix=fix
        ) from error
    version = str(module.__version__)
    minimum = MINIMUM_VERSION[target]
    if numbers(version) < minimum:
        raise MissingDependencyError(
            f"{name} {version} is too old; the minimum is {minimum[0]}.{minimum[1]}.",
            why="The graph defines the precision, which requires strongly typed networks.",
            fix=f"pip install --upgrade 'eomt-deploy[{target}]'",
        )
    return module


def numbers(version: str) -> tuple[int, int]:
    """Major and minor version: ``"10.13.3.9"`` -> (10, 13)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def check_operators(target: Target, version: str, operators: Mapping[str, int]) -> list[str]:
    """Check that a version of the library has all operators of a graph.

    Args:
        operators: how often the graph has each operator.

    Returns:
        a warning if this version has known faults.

    Raises:
        MissingDependencyError: an operator needs a newer version.
    """
    if target != "tensorrt":
        return []
    for operator, minimum in OPERATORS.items():
        if operators.get(operator) and numbers(version) < minimum:
            needed = f"{minimum[0]}.{minimum[1]}"
            raise MissingDependencyError(
                f"The graph has the operator {operator}, which needs TensorRT {needed}; "
                f"{version} is installed.",
                fix=f"Export again without --attention fused, or install TensorRT {needed}.",
            )
    return [KNOWN_FAULTS.format(version=version)] if numbers(version) < TESTED_FROM else []


@cache
def logger(target: Target) -> Any:
    """The single logger of this process: the library keeps using the first one it receives."""
    return _make_logger(load(target))


def _make_logger(module: Any) -> Any:
    severities = ("internal_error", "error", "warning", "info", "verbose")

    class Log(module.ILogger):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[Line] = []

        def log(self, severity: Any, text: str) -> None:
            level = int(severity.value)
            if level <= WARNING and not any(noise in text for noise in NOISE):
                del self.lines[:-KEPT_LINES]
                self.lines.append(Line(severities[level], text))

    return Log()


@contextmanager
def captured_log(target: Target) -> Iterator[list[Line]]:
    """Collect the library's warnings and errors during the block, at most about
    :data:`KEPT_LINES`."""
    log = logger(target)
    lines: list[Line] = []
    log.lines = lines
    yield lines


def complaints(
    lines: list[Line], *, maximum: int = 3, width: int = 400, kind: str = "error"
) -> list[str]:
    """The first errors or warnings of a log, without source locations and error codes.

    Args:
        maximum: maximum number of messages.
        width: maximum number of characters of a message.
        kind: ``error`` or ``warning``.
    """
    result: list[str] = []
    for line in lines:
        if kind in line.severity:
            text = PREFIX.sub("", " ".join(line.text.split()))
            text = PLACE.sub("", KIND.sub(r"\1", text)).strip()
            text = text if len(text) <= width else text[:width].rstrip() + " …"
            if text and text not in result:
                result.append(text)
    return result[:maximum]
