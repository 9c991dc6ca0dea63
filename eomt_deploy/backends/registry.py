"""Which run-times there are, and which one opens a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from eomt_deploy.backends.engine import Engine
from eomt_deploy.devices import is_x86, package_version
from eomt_deploy.errors import ArtifactError, MissingDependencyError, UsageError
from eomt_deploy.external_data import side_files
from eomt_deploy.sidecar import known_target, read_sidecar


class OpenEngine(Protocol):
    """How every engine is made."""

    def __call__(
        self, path: Path, *, device: str | None, threads: int | None, **options: str
    ) -> Engine: ...


@dataclass(frozen=True)
class Backend:
    """One run-time.

    Attributes:
        target: ``module:class`` of its engine.
        package: import name that must be installed.
        suffixes: files it opens.
        devices: devices it can run on.
        install: command that adds it.
        automatic: files that it may be chosen for without being asked; None means all.
        modes: what it can be set to be good at; empty where there is no choice.
    """

    target: str
    package: str
    suffixes: tuple[str, ...]
    devices: tuple[str, ...]
    install: str
    automatic: tuple[str, ...] | None = None
    modes: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def chosen_for(self, suffix: str) -> bool:
        """Whether it may open such files without being asked for."""
        return suffix in (self.suffixes if self.automatic is None else self.automatic)

    def load(self) -> OpenEngine:
        """Import the engine's class, and only now its run-time."""
        module, name = self.target.split(":")
        engine: OpenEngine = getattr(import_module(module), name)
        return engine


BACKENDS: Mapping[str, Backend] = {
    "onnxruntime": Backend(
        target="eomt_deploy.backends.onnxruntime.engine:OnnxRuntimeEngine",
        package="onnxruntime",
        suffixes=(".onnx",),
        devices=("cpu", "cuda"),
        install="pip install 'eomt-deploy[cpu]'  (or [cuda] for an NVIDIA GPU)",
    ),
    "tensorrt": Backend(
        target="eomt_deploy.backends.tensorrt.engine:TensorRtEngine",
        package="tensorrt",
        suffixes=(".engine",),
        devices=("cuda",),
        install="pip install 'eomt-deploy[tensorrt]'",
    ),
    "tensorrt-rtx": Backend(
        target="eomt_deploy.backends.tensorrt.engine:TensorRtEngine",
        package="tensorrt_rtx",
        suffixes=(".engine",),
        devices=("cuda",),
        install="pip install 'eomt-deploy[tensorrt-rtx]'",
    ),
    "aotinductor": Backend(
        target="eomt_deploy.backends.aotinductor.engine:AotInductorEngine",
        package="torch",
        suffixes=(".pt2",),
        devices=("cpu", "cuda"),
        install="pip install 'eomt-deploy[export]'",
    ),
    "openvino": Backend(
        target="eomt_deploy.backends.openvino.engine:OpenVinoEngine",
        package="openvino",
        suffixes=(".onnx", ".xml"),
        devices=("cpu",),
        install="pip install 'eomt-deploy[openvino]'",
        modes=("latency", "throughput"),
    ),
    # By name only: it judges what a GPU would compute, far more slowly.
    "emulation": Backend(
        target="eomt_deploy.backends.emulation.engine:EmulatedEngine",
        package="onnx_ir",
        suffixes=(".onnx",),
        devices=("cpu",),
        install="pip install 'eomt-deploy[cpu,export]'",
        automatic=(),
    ),
}


def openvino_first(device: str | None) -> bool:
    """Whether OpenVINO is the better choice for a graph: on x86, unless a GPU can be used.

    In FP32 both are at the chip's limit; of the two it alone computes in BF16.
    """
    if not is_x86():
        return False
    return device == "cpu" or (device is None and package_version("onnxruntime-gpu") is None)


def choose_backend(path: Path, backend: str | None, device: str | None = None) -> str:
    """The run-time for a file: the one asked for, else the best installed one that fits.

    For an ``.onnx`` file on an x86 CPU that is OpenVINO, then ONNX Runtime.

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
    else:
        chosen = [name for name in fitting if BACKENDS[name].chosen_for(suffix)]
        able = [name for name in chosen if device in (None, *BACKENDS[name].devices)]
        fitting = able or chosen
        if openvino_first(device):
            fitting.sort(key=lambda name: name != "openvino" or not BACKENDS[name].installed)
    if suffix == ".engine" and path.is_file():
        # Both libraries have this suffix; which of them built the file stands beside it.
        target = known_target(read_sidecar(path))
        if backend not in (None, target):
            raise UsageError(
                f"{path} was built by {target}; {backend} cannot run it.",
                fix=f"Leave the backend out, or build again: eomt-deploy build --target {backend}",
            )
        fitting = [target]
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
    precision: str | None = None,
    mode: str | None = None,
) -> Engine:
    """Open an exported model with the run-time that fits.

    ``.engine`` and ``.pt2`` files are machine code: open only what you built, or got from somebody
    you trust. An engine that also brings code for the CPU (``build --version-compatible``) opens
    only with ``EOMT_DEPLOY_TRUST_ENGINES=1`` in the environment.

    Args:
        path: artifact that eomt-deploy wrote.
        backend: run-time by name; None chooses by suffix and by what is installed.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: CPU threads; None leaves it to the run-time.
        precision: what it must compute in; None takes any.
        mode: ``"latency"`` (one call after another, each as fast as can be; the default) or
            ``"throughput"`` (many calls at once, or large batches). OpenVINO only.

    Raises:
        ArtifactError: no such file, damaged, or without our description.
        MissingDependencyError: no run-time for it is installed.
        DeviceError: the device cannot be used.
        UsageError: unknown backend or device, or the model computes in another precision.
    """
    path = Path(path)
    name = choose_backend(path, backend, device)
    if not path.is_file():
        raise ArtifactError(f"There is no model at {path}.")
    if path.suffix.lower() == ".onnx":
        side_files(path)  # whatever the backend would read, also outside the folder
    devices = BACKENDS[name].devices
    if device is not None and device not in devices:
        raise UsageError(f"{name} has no device {device!r}.", fix=f"It has {', '.join(devices)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot run anything.", fix="Pass 1 or more.")
    if mode is not None and mode not in BACKENDS[name].modes:
        modes = " or ".join(BACKENDS[name].modes)
        raise UsageError(
            f"{name} has no mode {mode!r}.",
            fix=f"Use {modes}." if modes else "Leave the mode out.",
        )
    if precision is not None and path.suffix.lower() == ".engine":
        check_precision(read_sidecar(path).precision, precision)  # before the library is asked
    options = {} if mode is None else {"mode": mode}
    engine = BACKENDS[name].load()(path, device=device, threads=threads, **options)
    if precision is not None:
        try:
            check_precision(engine.spec.precision, precision)
        except UsageError:
            engine.close()
            raise
    return engine


def check_precision(found: str, wanted: str) -> None:
    """A model must compute in what the caller wants.

    Raises:
        UsageError: it computes in something else.
    """
    if found != wanted:
        raise UsageError(
            f"The model computes in {found}, {wanted} was asked for.",
            why="The precision is inside the graph, decided when it is exported.",
            fix=f"eomt-deploy export CHECKPOINT --precision {wanted} -o m.{wanted}.onnx; an engine "
            "is then built from that.",
        )
