"""Nobody is contacted: reports of other libraries about their users are switched off.

ONNX Runtime sends events to Microsoft and keeps a device id in the user's cache; OpenVINO sends
events to Google Analytics and keeps a client id in the home folder; huggingface_hub adds facts
about the machine to its requests. PyTorch, onnx, TensorRT, OpenCV and matplotlib report nothing.

A choice that the user made is left as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ONNXRUNTIME_SWITCH = "ORT_DISABLE_TELEMETRY"
HUB_SWITCH = "HF_HUB_DISABLE_TELEMETRY"
HUB_SWITCHES = (HUB_SWITCH, "DISABLE_TELEMETRY", "DO_NOT_TRACK")
"""Each of them alone switches it off."""
YES = ("1", "true", "yes", "on")
"""Values that both libraries take for a yes, in any case."""
OPENVINO_REPORTER = "openvino_telemetry"
"""The package that OpenVINO reports with; without it OpenVINO uses its own empty stand-in."""


@dataclass(frozen=True)
class Report:
    """Whether a library reports about its user.

    Attributes:
        library: its import name.
        sends: whether it does, in this process.
        reason: what switched it off, or who left it on.
    """

    library: str
    sends: bool
    reason: str


def switch_off() -> None:
    """Set the environment variables that libraries read when they are imported, unless they are
    set. Processes that this one starts inherit them."""
    for name in (ONNXRUNTIME_SWITCH, HUB_SWITCH):
        os.environ.setdefault(name, "1")


def quiet_onnxruntime(module: Any) -> None:
    """Switch off what ONNX Runtime still sends if it was imported before us, and on Windows, where
    builds with the system's event tracing do not read the environment variable."""
    if _says_yes(ONNXRUNTIME_SWITCH):
        module.disable_telemetry_events()


def import_openvino() -> Any:
    """The module ``openvino``, imported without a report.

    OpenVINO has no variable for this. Its own opt-out is a file in the home folder, and choosing it
    sends a report, too. But its reporting package is optional, and so it is hidden meanwhile.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" not in sys.modules and not _opted_in_to_openvino():
        with _hidden(OPENVINO_REPORTER):
            import openvino
    import openvino

    return openvino


def reports() -> list[Report]:
    """What the libraries that are installed here report, and why."""
    found = []
    if find_spec("onnxruntime"):
        found.append(_by_variable("onnxruntime", (ONNXRUNTIME_SWITCH,)))
    if find_spec("openvino"):
        if _opted_in_to_openvino():
            found.append(Report("openvino", True, f"you opted in ({_openvino_consent()})"))
        else:
            found.append(Report("openvino", False, "its reporting package is not loaded"))
    if find_spec("huggingface_hub"):
        found.append(_by_variable("huggingface_hub", HUB_SWITCHES))
    return found


def _by_variable(library: str, names: tuple[str, ...]) -> Report:
    """A library that any of these environment variables switches off."""
    for name in names:
        if _says_yes(name):
            return Report(library, False, f"{name}={os.environ[name]}")
    value = os.environ.get(names[0])
    state = f"you set {names[0]}={value}" if value is not None else f"{names[0]} is not set"
    return Report(library, True, state)


def _says_yes(name: str) -> bool:
    return os.environ.get(name, "").lower() in YES


def _openvino_consent() -> Path:
    """Where OpenVINO's program `opt_in_out` writes down the user's choice."""
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", "")) / "Intel Corporation" / OPENVINO_REPORTER
    return Path.home() / "intel" / OPENVINO_REPORTER


def _opted_in_to_openvino() -> bool:
    try:
        return _openvino_consent().read_text("utf-8").strip() == "1"
    except (OSError, RuntimeError, UnicodeDecodeError):  # RuntimeError: the user has no home folder
        return False


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Importing ``package`` fails meanwhile, as if it were not installed."""
    missing = object()
    before: Any = sys.modules.get(package, missing)
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say so
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[package]
        else:
            sys.modules[package] = before
