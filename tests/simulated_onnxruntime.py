"""ONNX Runtime's GPU engine on a simulated GPU: its sessions run on the CPU, in the order of the
streams, and on the buffers of the simulated GPU."""

from __future__ import annotations

from simulated_gpu import SimulatedGpu, Work

from eomt_deploy.backends.onnxruntime.engine import CPU
from eomt_deploy.backends.onnxruntime.gpu import OnnxRuntimeGpuEngine, SessionNetwork


class StreamNetwork(SessionNetwork):
    """Runs when the stream of the simulated GPU reaches it."""

    gpu: SimulatedGpu
    stream: int

    waited: int = 0
    not_waited: int = 0

    def run(self, options) -> None:
        if options is None:  # ONNX Runtime waits for the stream
            self.waited += 1
            self.gpu.synchronize(self.stream)
            super().run(None)
            return
        self.not_waited += 1
        binding = self._binding

        def now() -> None:
            assert self._binding is binding, "the recorded graph has other buffers"
            SessionNetwork.run(self, options)

        self.gpu.submit(self.stream, Work(now))


class SimulatedOnnxRuntime(OnnxRuntimeGpuEngine):
    memory = "cpu"

    def __init__(self, path, gpu) -> None:
        self._given = gpu
        super().__init__(path)

    def _open_gpu(self):
        return self._given

    def _providers(self, stream):
        self._latest.stream = stream
        return [CPU]

    def _check_placement(self, session):
        pass

    def _network(self):
        self._latest = StreamNetwork(self._images, self._outputs, self.memory, self.gpu.index)
        self._latest.gpu = self._given
        return self._latest
