"""Check whether TensorRT or TensorRT-RTX can build on this machine."""

from __future__ import annotations

from eomt_deploy.backends.backend import NO_GPU, Problem
from eomt_deploy.backends.tensorrt import library
from eomt_deploy.devices import current_gpu
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.sidecar import Target


def tensorrt_problem() -> Problem | str:
    """The problem, or the version and the GPU of this machine, which TensorRT builds for."""
    gpu = current_gpu()
    if gpu is None:  # installing TensorRT would not help
        fix = "build on the machine that runs the engine, or use --target tensorrt-rtx"
        return Problem(NO_GPU, fix)
    version = _version("tensorrt")
    return version if isinstance(version, Problem) else f"{version}, for {gpu.name}"


def rtx_problem() -> Problem | str:
    """The problem, or the version of TensorRT-RTX, which builds without a GPU."""
    version = _version("tensorrt-rtx")
    return version if isinstance(version, Problem) else f"{version}, for RTX GPUs (none is needed)"


def _version(target: Target) -> Problem | str:
    try:
        return str(library.load(target).__version__)
    except MissingDependencyError as error:
        return Problem(error.what, error.fix)
