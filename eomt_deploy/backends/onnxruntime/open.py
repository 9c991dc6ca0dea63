"""Choose between ONNX Runtime's engines."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import onnxruntime as ort

from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.gpu_engine import THREADS_DO_NOT_APPLY, copies_everything
from eomt_deploy.backends.onnxruntime.engine import CUDA, OnnxRuntimeEngine
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, MissingDependencyError


def open_onnxruntime(
    path: Path, *, device: str | None = None, threads: int | None = None
) -> Engine:
    """An engine that keeps everything on the GPU if possible; arguments as in
    :func:`eomt_deploy.backends.open_engine`.

    Without cuda-python or NVRTC, images and outputs are copied for each run. If ONNX Runtime cannot
    use the GPU, the engine runs on the CPU, unless ``device`` is ``"cuda"``. Both are remarks.
    """
    able = CUDA in ort.get_available_providers() and cuda_device_count() > 0
    if not able or device == "cpu":
        return OnnxRuntimeEngine(path, device=device, threads=threads)
    from eomt_deploy.backends.onnxruntime.gpu import MoreOutputsError, OnnxRuntimeGpuEngine

    load_cuda_libraries()
    try:
        gpu_engine = OnnxRuntimeGpuEngine(path)
        if threads is not None:
            gpu_engine.remarks += (THREADS_DO_NOT_APPLY,)
        return gpu_engine
    except MoreOutputsError:
        return OnnxRuntimeEngine(path, device=device, threads=threads)
    except MissingDependencyError as error:
        engine = OnnxRuntimeEngine(path, device=device, threads=threads)
        engine.remarks += (copies_everything(error),)
        return engine
    except DeviceError as error:
        if device == "cuda":
            raise
        engine = OnnxRuntimeEngine(path, device="cpu", threads=threads)
        reasons = " ".join(filter(None, (error.what, error.why)))
        engine.remarks += (f"ONNX Runtime runs on the CPU, not on the GPU. {reasons}",)
        return engine


@cache
def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where the system's loader finds nothing.

    Without an effect if there are no such packages: ONNX Runtime then looks in the system's
    folders, and reports what it does not find.
    """
    load = getattr(ort, "preload_dlls", None)  # since ONNX Runtime 1.21
    if load is not None:
        with suppress(Exception), redirect_stdout(io.StringIO()):  # it prints what is missing
            load()
