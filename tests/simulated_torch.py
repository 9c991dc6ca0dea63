"""The engine for AOTInductor packages on a simulated GPU: packages for the CPU run in the order of
the streams, on the buffers of the simulated GPU."""

from __future__ import annotations

import math

import torch
from simulated_gpu import SimulatedGpu, Work

from eomt_deploy.backends.aotinductor.engine import load_package
from eomt_deploy.backends.aotinductor.gpu import AotInductorGpuEngine, TorchGpu


class SimulatedTorchGpu(TorchGpu):
    def __init__(self, gpu: SimulatedGpu, *, graphs: bool) -> None:
        self.gpu, self.graphs = gpu, graphs
        self.launched: list[str] = []
        self.opened = self.recordings = self.released = 0

    def release(self):
        self.released += 1

    def load(self, path):
        self.opened += 1
        return load_package(path, single_threaded=not self.no_graph)

    def tensor(self, pointer, shape, dtype):
        memory = self.gpu.view(pointer, math.prod(shape) * dtype.itemsize)
        return torch.from_numpy(memory).view(getattr(torch, dtype.name)).view(shape)

    def launch(self, run, stream):
        self.launched.append(run.__name__)
        self.gpu.submit(stream, Work(run))

    def record(self, run, stream):
        self.recordings += 1
        if not self.graphs:
            raise RuntimeError("CUDA error: operation not permitted\nDetails follow.")

        def replay() -> None:
            run()

        return replay


class SimulatedPackage(AotInductorGpuEngine):
    def __init__(self, path, gpu, *, works: bool = True, **options) -> None:
        self._given = gpu, SimulatedTorchGpu(gpu, graphs=works)
        super().__init__(path, **options)

    def _open_gpu(self):
        return self._given
