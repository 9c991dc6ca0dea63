"""Table of the backends, and the selection of the one that opens a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eomt_deploy.backends.backend import Backend, Builder
from eomt_deploy.backends.engine import Engine
from eomt_deploy.devices import is_x86, package_version
from eomt_deploy.errors import MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.external_data import side_files
from eomt_deploy.precision import PRECISIONS, UNQUANTIZED
from eomt_deploy.sidecar import known_target, read_sidecar

ALL = tuple(PRECISIONS)
BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        title="ONNX Runtime",
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        extra="cpu",
        suffixes=(".onnx",),
        devices=("cpu", "cuda"),
        precisions=("fp32", "fp16", "bf16", "int8"),
        engine=".onnxruntime.open:open_onnxruntime",
        inspect=".onnxruntime.inspect:inspect",
        problem=".onnxruntime.problem:problem",
    ),
    "tensorrt": Backend(
        title="TensorRT",
        package="tensorrt",
        distributions=("tensorrt",),
        extra="tensorrt",
        suffixes=(".engine",),
        devices=("cuda",),
        precisions=ALL,
        engine=".tensorrt.engine:TensorRtEngine",
        inspect=".tensorrt.inspect:inspect",
        build=Builder(
            ".engine",
            config=".tensorrt.config:TensorRtConfig",
            run=".tensorrt.build:build",
            check=".tensorrt.build:check_ready",
            problem=".tensorrt.problem:tensorrt_problem",
            file=".tensorrt.built:TensorRtFile",
        ),
    ),
    "tensorrt-rtx": Backend(
        title="TensorRT-RTX",
        package="tensorrt_rtx",
        distributions=("tensorrt-rtx-cu13",),
        extra="tensorrt-rtx",
        suffixes=(".engine",),
        devices=("cuda",),
        precisions=ALL,
        engine=".tensorrt.engine:TensorRtEngine",
        build=Builder(
            ".engine",
            config=".tensorrt.config:TensorRtConfig",
            run=".tensorrt.build:build",
            check=".tensorrt.build:check_ready",
            problem=".tensorrt.problem:rtx_problem",
            file=".tensorrt.built:TensorRtFile",
        ),
    ),
    "aotinductor": Backend(
        title="AOTInductor",
        package="torch",
        distributions=("torch", "triton"),
        extra="export",
        suffixes=(".pt2",),
        devices=("cpu", "cuda"),
        precisions=(*UNQUANTIZED, "fp8"),
        engine=".aotinductor.open:open_aotinductor",
        problem=".aotinductor.problem:problem",
        inspect=".aotinductor.inspect:inspect",
    ),
    "openvino": Backend(
        title="OpenVINO",
        package="openvino",
        distributions=("openvino",),
        extra="openvino",
        suffixes=(".onnx", ".xml"),
        devices=("cpu",),
        precisions=("fp32", "bf16", "fp16", "int8"),
        engine=".openvino.engine:OpenVinoEngine",
        inspect=".openvino.inspect:inspect",
        build=Builder(
            ".xml",
            config=".openvino.config:OpenVinoConfig",
            run=".openvino.build:build_openvino",
            file=".openvino.built:OpenVinoFile",
        ),
        modes=("latency", "throughput"),
        arithmetics=("fp32", "bf16", "fp16"),
        caches=True,
    ),
    "executorch": Backend(
        title="ExecuTorch",
        package="executorch",
        distributions=("executorch",),
        extra="executorch",
        suffixes=(".pte",),
        devices=("cpu",),
        precisions=("fp32",),
        engine=".executorch.engine:ExecuTorchEngine",
        inspect=".executorch.inspect:inspect",
        build=Builder(
            ".pte",
            config=".executorch.config:ExecuTorchConfig",
            run=".executorch.build:build_executorch",
            check=".executorch.build:check_ready",
            file=".executorch.built:ExecuTorchFile",
            fused_attention=False,
        ),
    ),
    # Selected by name only: it computes what a GPU would, but much more slowly.
    "emulation": Backend(
        title="Emulation",
        package="onnx_ir",
        distributions=("onnx-ir",),
        extra="cpu",
        suffixes=(".onnx",),
        devices=("cpu",),
        precisions=ALL,
        engine=".emulation.engine:EmulatedEngine",
        automatic=(),
    ),
    # Its packages run on macOS and iOS, so it has no engine here.
    "coreml": Backend(
        title="Core ML",
        package="coremltools",
        distributions=("coremltools",),
        extra="coreml",
        suffixes=(),
        devices=(),
        precisions=("fp32", "fp16"),
        engine="",
        inspect=".coreml.inspect:inspect",
        build=Builder(
            ".mlpackage",
            config=".coreml.config:CoreMlConfig",
            run=".coreml.build:build_core_ml",
            problem=".coreml.library:problem",
            fused_attention=False,
        ),
    ),
    # Its files run in browsers, so it has no engine here.
    "web": Backend(
        title="ONNX Runtime Web",
        package="eomt_deploy",
        distributions=(),
        extra="cpu",
        suffixes=(),
        devices=(),
        precisions=("fp32", "fp16", "int8"),
        engine="",
        inspect=".web.inspect:inspect",
        build=Builder(
            ".html",
            config=".web.config:WebConfig",
            run=".web.build:build_web",
            problem=".web.problem:problem",
            folder=True,
        ),
    ),
}


def engines() -> list[str]:
    """Names of the backends that run models on this machine, if they are installed."""
    return [name for name, backend in BACKENDS.items() if backend.engine]


def builders(suffix: str) -> list[str]:
    """Names of the backends that build files with this suffix."""
    return [
        name
        for name, backend in BACKENDS.items()
        if backend.build is not None and backend.build.suffix == suffix.lower()
    ]


def distributions() -> tuple[str, ...]:
    """Distributions of all backends, whose versions appear in reports."""
    return tuple(dict.fromkeys(name for b in BACKENDS.values() for name in b.distributions))


def openvino_first(device: str | None) -> bool:
    """Whether OpenVINO is preferred to ONNX Runtime: on x86, unless a GPU can be used.

    In FP32 both reach the limit of the CPU, but only OpenVINO also computes in BF16.
    """
    if not is_x86():
        return False
    return device == "cpu" or (device is None and package_version("onnxruntime-gpu") is None)


def choose_backend(path: Path, backend: str | None, device: str | None = None) -> str:
    """Select the backend for a file: the requested one, or the best installed one.

    For an ``.onnx`` file on an x86 CPU, OpenVINO comes before ONNX Runtime.

    Raises:
        UsageError: the requested backend is unknown or does not open this file.
        ModelFileError: no backend opens files with this suffix.
        MissingDependencyError: no suitable backend is installed.
    """
    suffix = path.suffix.lower()
    fitting = [name for name, entry in BACKENDS.items() if suffix in entry.suffixes]
    if backend is not None:
        if backend not in engines():
            raise UsageError(
                f"There is no backend {backend!r} that runs models on this machine.",
                fix=f"Known: {', '.join(engines())}.",
            )
        if backend not in fitting:
            raise UsageError(
                f"{backend} does not open files with the suffix {suffix or '(none)'}.",
                fix=f"Use a file with the suffix {' or '.join(BACKENDS[backend].suffixes)}.",
            )
        fitting = [backend]
    else:
        chosen = [name for name in fitting if BACKENDS[name].chosen_for(suffix)]
        able = [name for name in chosen if device in (None, *BACKENDS[name].devices)]
        fitting = able or chosen
        if openvino_first(device):
            fitting.sort(key=lambda name: name != "openvino" or not BACKENDS[name].installed)
    if suffix == ".engine" and path.is_file():
        # Both TensorRT libraries use this suffix; the sidecar names the one that built the file.
        target = known_target(read_sidecar(path))
        if backend not in (None, target):
            raise UsageError(
                f"{path} was built by {target}; {backend} cannot run it.",
                fix=f"Leave the backend out, or rebuild it: eomt-deploy build --target {backend}",
            )
        fitting = [target]
    if not fitting:
        known = sorted({s for entry in BACKENDS.values() for s in entry.suffixes})
        raise ModelFileError(
            f"{path} is not a model file: its suffix is {suffix or 'missing'}, expected "
            f"{', '.join(known)}.",
            fix="Create a model file with `eomt-deploy export`.",
        )
    for name in fitting:
        if BACKENDS[name].installed:
            return name
    raise MissingDependencyError(
        f"No installed backend opens {path.name}; it needs {' or '.join(fitting)}.",
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
    arithmetic: str | None = None,
    cache: bool = True,
) -> Engine:
    """Open a model file with a suitable backend.

    ``.engine`` and ``.pt2`` files contain machine code, and ExecuTorch does not check a ``.pte``
    file completely: only open files that you built or that come from someone you trust. An engine
    that also contains code for the CPU (``build --version-compatible``) opens only with
    ``EOMT_DEPLOY_TRUST_ENGINES=1`` in the environment.

    Args:
        path: model file that eomt-deploy wrote.
        backend: name of the backend; None selects an installed one by the suffix of the file.
        device: ``"cpu"`` or ``"cuda"``; None uses the best that works.
        threads: number of CPU threads; None leaves it to the backend.
        precision: precision that the model must compute in; None accepts any.
        mode: ``"latency"`` (one call after another, each as fast as possible; the default) or
            ``"throughput"`` (many calls at once, or large batches). OpenVINO only.
        arithmetic: what the unquantised layers compute in: ``"fp32"``, ``"bf16"`` or ``"fp16"``;
            None uses that of the model file. OpenVINO only.
        cache: keep what the backend compiles in the cache folder, so that the next start is faster.

    Raises:
        ModelFileError: the file does not exist, is damaged, or was not written by eomt-deploy.
        MissingDependencyError: no backend for it is installed.
        DeviceError: the device cannot be used.
        UsageError: the backend or an option is not valid, or the model
            computes in another precision.
    """
    path = Path(path)
    name = choose_backend(path, backend, device)
    if not path.is_file():
        raise ModelFileError(f"There is no model at {path}.", fix="Check the path.")
    if path.suffix.lower() == ".onnx":
        side_files(path)  # refuses side files outside the folder before the backend reads them
    devices = BACKENDS[name].devices
    if device is not None and device not in devices:
        raise UsageError(
            f"{name} does not run on the device {device!r}.", fix=f"Use {' or '.join(devices)}."
        )
    if threads is not None and threads < 1:
        raise UsageError(
            f"`threads` must be at least 1, got {threads}.",
            fix="Pass 1 or more, or leave it out for the backend's choice.",
        )
    options: dict[str, Any] = {}
    for option, value, known in (
        ("mode", mode, BACKENDS[name].modes),
        ("arithmetic", arithmetic, BACKENDS[name].arithmetics),
    ):
        if value is None:
            continue
        if value not in known:
            raise UsageError(
                f"{name} has no {option} {value!r}.",
                fix=f"Use {' or '.join(known)}." if known else f"Leave the {option} out.",
            )
        options[option] = value
    if precision is not None and path.suffix.lower() == ".engine":
        check_precision(read_sidecar(path).precision, precision)  # before the library is imported
    if BACKENDS[name].caches:
        options["cache"] = cache
    engine = BACKENDS[name].load()(path, device=device, threads=threads, **options)
    if precision is not None:
        try:
            check_precision(engine.spec.precision, precision)
        except UsageError:
            engine.close()
            raise
    return engine


def check_precision(found: str, wanted: str) -> None:
    """Check that a model computes in the requested precision.

    Raises:
        UsageError: it computes in another one.
    """
    if found != wanted:
        raise UsageError(
            f"{wanted} was requested, but the model computes in {found}.",
            why="The precision is part of the graph and is set when the model is exported.",
            fix=f"Export again: eomt-deploy export CHECKPOINT --precision {wanted} -o "
            f"m.{wanted}.onnx; then build engines from that file.",
        )
