"""Choose between the engines for AOTInductor packages."""

from __future__ import annotations

from pathlib import Path

from eomt_deploy.backends.aotinductor.engine import AotInductorEngine, check_package
from eomt_deploy.backends.aotinductor.trial import can_record
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.gpu_engine import copies_everything
from eomt_deploy.errors import MissingDependencyError


def open_aotinductor(
    path: Path, *, device: str | None = None, threads: int | None = None
) -> Engine:
    """An engine that keeps everything on the GPU, if the package was compiled for one; arguments as
    in :func:`eomt_deploy.backends.open_engine`.

    The first opening on a machine takes longer, because another process tries the package. Without
    cuda-python or NVRTC, images and outputs are copied for each run, which is a remark.
    """
    _, place = check_package(path, device)
    if place == "cpu":
        return AotInductorEngine(path, device=device, threads=threads)
    from eomt_deploy.backends.aotinductor.gpu import NOT_RECORDED, AotInductorGpuEngine

    try:
        engine_on_gpu = AotInductorGpuEngine(path, threads=threads, graphs=can_record(path))
        if engine_on_gpu.cuda_graph == NOT_RECORDED:
            engine_on_gpu.remarks += (f"The CUDA graph is {NOT_RECORDED}.",)
        return engine_on_gpu
    except MissingDependencyError as error:
        engine = AotInductorEngine(path, device=device, threads=threads)
        engine.remarks += (copies_everything(error),)
        return engine
