"""Which run-times there are, and which one opens a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from eomt_deploy.engines.base import Engine
from eomt_deploy.errors import ArtifactError, MissingDependencyError, UsageError


class OpenEngine(Protocol):
    """How every engine is made."""

    def __call__(self, path: Path, *, device: str | None, threads: int | None) -> Engine: ...


@dataclass(frozen=True)
class Backend:
    """One run-time.

    Attributes:
        target: ``module:class`` of its engine.
        package: import name that must be installed.
        suffixes: files it opens.
        devices: devices it can run on.
        install: command that adds it.
    """

    target: str
    package: str
    suffixes: tuple[str, ...]
    devices: tuple[str, ...]
    install: str

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def load(self) -> OpenEngine:
        """Import the engine's class, and only now its run-time."""
        module, name = self.target.split(":")
        engine: OpenEngine = getattr(import_module(module), name)
        return engine


BACKENDS: Mapping[str, Backend] = {
    "onnxruntime": Backend(
        target="eomt_deploy.engines.onnxruntime:OnnxRuntimeEngine",
        package="onnxruntime",
        suffixes=(".onnx",),
        devices=("cpu", "cuda"),
        install="pip install 'eomt-deploy[cpu]'  (or [cuda] for an NVIDIA GPU)",
    ),
}


def choose_backend(path: Path, backend: str | None) -> str:
    """The run-time for a file: the one asked for, else the first installed that fits.

    Raises:
        UsageError: unknown name, or it does not open such files.
        ArtifactError: no run-time opens such files.
        MissingDependencyError: it, or all that fit, are not installed.
    """
    suffix = path.suffix.lower()
    fitting = [name for name, entry in BACKENDS.items() if suffix in entry.suffixes]
    if backend is not None:
        if backend not in BACKENDS:
            raise UsageError(
                f"There is no backend {backend!r}.", fix=f"Known: {', '.join(BACKENDS)}."
            )
        if backend not in fitting:
            raise UsageError(
                f"{backend} does not open {suffix or 'such'} files.",
                fix=f"It opens {', '.join(BACKENDS[backend].suffixes)}.",
            )
        fitting = [backend]
    if not fitting:
        known = sorted({s for entry in BACKENDS.values() for s in entry.suffixes})
        raise ArtifactError(
            f"{path} is not an artifact that can be run: the suffix is {suffix or 'missing'}.",
            fix=f"Known suffixes: {', '.join(known)}. Make one with `eomt-deploy export`.",
        )
    for name in fitting:
        if BACKENDS[name].installed:
            return name
    raise MissingDependencyError(
        f"No installed run-time opens {path.name}: {', '.join(fitting)} is missing.",
        fix=BACKENDS[fitting[0]].install,
    )


def open_engine(
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Open an exported model with the run-time that fits.

    Args:
        path: artifact that eomt-deploy wrote.
        backend: run-time by name; None chooses by suffix and by what is installed.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: CPU threads; None leaves it to the run-time.

    Raises:
        ArtifactError: no such file, damaged, or without our description.
        MissingDependencyError: no run-time for it is installed.
        DeviceError: the device cannot be used.
        UsageError: unknown backend or device.
    """
    path = Path(path)
    name = choose_backend(path, backend)
    if not path.is_file():
        raise ArtifactError(f"There is no model at {path}.")
    devices = BACKENDS[name].devices
    if device is not None and device not in devices:
        raise UsageError(f"{name} has no device {device!r}.", fix=f"It has {', '.join(devices)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot run anything.", fix="Pass 1 or more.")
    return BACKENDS[name].load()(path, device=device, threads=threads)
