"""Switch off the telemetry of other libraries.

ONNX Runtime sends events to Microsoft and keeps a device id in the user's cache. OpenVINO sends
events to Google Analytics and keeps a client id in the home folder. huggingface_hub adds facts
about the machine to its requests. Ray sends usage statistics of each cluster. PyTorch, onnx,
TensorRT, coremltools, OpenCV and matplotlib send nothing.

A choice that the user already made is not changed.
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
"""Each of these variables alone switches the telemetry off."""
RAY_SWITCH = "RAY_USAGE_STATS_ENABLED"
"""Ray counts only 0 as off."""
YES = ("1", "true", "yes", "on")
"""Values that both libraries accept as yes; upper and lower case are equal."""
OPENVINO_REPORTER = "openvino_telemetry"
"""OpenVINO's telemetry package; without it OpenVINO uses functions that do nothing."""


@dataclass(frozen=True)
class Report:
    """Whether a library sends telemetry.

    Attributes:
        library: its import name.
        sends: whether it sends telemetry in this process.
        reason: the setting that switches it on or off.
    """

    library: str
    sends: bool
    reason: str


def switch_off() -> None:
    """Set the environment variables that libraries read at import, unless the user set them.

    Child processes inherit them.
    """
    for name in (ONNXRUNTIME_SWITCH, HUB_SWITCH):
        os.environ.setdefault(name, "1")
    os.environ.setdefault(RAY_SWITCH, "0")


def quiet_onnxruntime(module: Any) -> None:
    """Switch off the telemetry of an imported ONNX Runtime.

    The environment variable has no effect if ONNX Runtime was imported before this package, or in
    Windows builds that use the system's event tracing.
    """
    if _says_yes(ONNXRUNTIME_SWITCH):
        module.disable_telemetry_events()


def import_openvino() -> Any:
    """Import ``openvino`` without telemetry.

    OpenVINO has no environment variable for this. Its own opt-out is a file in the home folder, and
    even opting out sends an event. But its telemetry package is optional, so it is hidden during
    the import.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    if "openvino" not in sys.modules and not _opted_in_to_openvino():
        with _hidden(OPENVINO_REPORTER):
            import openvino
    import openvino

    return openvino


def reports() -> list[Report]:
    """Telemetry state of the installed libraries."""
    found = []
    if find_spec("onnxruntime"):
        found.append(_by_variable("onnxruntime", (ONNXRUNTIME_SWITCH,)))
    if find_spec("openvino"):
        if _opted_in_to_openvino():
            found.append(Report("openvino", True, f"you opted in ({_openvino_consent()})"))
        else:
            found.append(Report("openvino", False, "its telemetry package is not loaded"))
    if find_spec("huggingface_hub"):
        found.append(_by_variable("huggingface_hub", HUB_SWITCHES))
    if find_spec("ray"):
        value = os.environ.get(RAY_SWITCH)
        found.append(Report("ray", value != "0", f"{RAY_SWITCH}={value}"))
    return found


def _by_variable(library: str, names: tuple[str, ...]) -> Report:
    """State of a library whose telemetry any of these environment variables switches off."""
    for name in names:
        if _says_yes(name):
            return Report(library, False, f"{name}={os.environ[name]}")
    value = os.environ.get(names[0])
    state = f"you set {names[0]}={value}" if value is not None else f"{names[0]} is not set"
    return Report(library, True, state)


def _says_yes(name: str) -> bool:
    return os.environ.get(name, "").lower() in YES


def _openvino_consent() -> Path:
    """The file that OpenVINO's program `opt_in_out` writes the user's choice to."""
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
    """Make the import of ``package`` fail in a ``with`` block, as if it were not installed."""
    missing = object()
    before: Any = sys.modules.get(package, missing)
    sys.modules[package] = None  # type: ignore[assignment]  # makes Python raise ImportError
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[package]
        else:
            sys.modules[package] = before
