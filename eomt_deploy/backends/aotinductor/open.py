"""Choose between the engines for AOTInductor packages."""

from __future__ import annotations

from pathlib import Path

from eomt_deploy.backends.aotinductor.engine import AotInductorEngine, check_package
from eomt_deploy.backends.aotinductor.trial import why_no_graph
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
    from eomt_deploy.backends.aotinductor.gpu import AotInductorGpuEngine, check_gpu

    try:
        check_gpu()
        no_graph = why_no_graph(path)
        engine_on_gpu = AotInductorGpuEngine(path, threads=threads, no_graph=no_graph)
        if no_graph:
            engine_on_gpu.remarks += (f"It runs without a CUDA graph: {no_graph}.",)
        return engine_on_gpu
    except MissingDependencyError as error:
        engine = AotInductorEngine(path, device=device, threads=threads)
        engine.remarks += (copies_everything(error),)
        return engine
