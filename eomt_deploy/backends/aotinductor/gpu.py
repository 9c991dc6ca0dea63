"""AOTInductor packages on an NVIDIA GPU, with inputs and outputs in GPU memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor as TorchTensor

from eomt_deploy.backends.aotinductor.engine import (
    check_package,
    load_package,
    open_error,
)
from eomt_deploy.backends.gpu_engine import THREADS_DO_NOT_APPLY, GpuEngine, numpy_bfloat16
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.cuda import Device, open_device
from eomt_deploy.cuda.executor import CAPTURING, Tensor, ThreadExecutor
from eomt_deploy.cuda.nvrtc import nvrtc_facts
from eomt_deploy.errors import DeviceError, first_line
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.spec import ModelSpec

BROKEN_GRAPHS: list[Any] = []
"""CUDA graphs whose recording failed: PyTorch's allocator may refer to them from then on."""

Run = Callable[[], None]
Package = Callable[[TorchTensor], tuple[TorchTensor, TorchTensor]]


class AotInductorGpuEngine(GpuEngine):
    """Runs a ``.pt2`` file that was compiled for the GPU, in one CUDA graph.

    Each thread opens the package once, and so has its own weights: a package that several threads
    share waits for other threads, which a CUDA graph cannot contain.

    Args:
        path: the package.
        threads: without an effect, which is a remark.
        no_graph: reason for running without a CUDA graph, from
            :func:`eomt_deploy.backends.aotinductor.trial.why_no_graph`.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: there is no GPU, or the package was compiled for another one.
        ModelFileError: the file is damaged, or was compiled with another version of PyTorch.
    """

    backend = "aotinductor"

    def __init__(self, path: Path, *, threads: int | None = None, no_graph: str = "") -> None:
        super().__init__()
        self.path: Path = path
        self.device = "cuda"
        self.spec, _ = check_package(path, "cuda")
        nvrtc_facts()  # needed by the kernels of the pre- and post-processing
        self.gpu, self._torch = self._open_gpu()
        self._torch.no_graph = no_graph
        self._images = Tensor(INPUT, (*self.spec.image_size, 3), np.dtype(np.uint8))
        self._outputs = outputs_of(self.spec)
        if threads is not None:
            self.remarks += (THREADS_DO_NOT_APPLY,)
        self._executor()  # now, so that errors are reported when the engine is opened

    def _open_gpu(self) -> tuple[Device, TorchGpu]:
        gpu = open_device()
        return gpu, TorchGpu(gpu.index)

    def _make_executor(self) -> ThreadExecutor:
        with CAPTURING:  # PyTorch waits for the complete GPU when it opens a package
            try:
                package = self._torch.load(self.path)
            except Exception as error:  # e.g. compiled with another version of PyTorch
                raise open_error(self.path, error) from error
        network = PackageNetwork(package, self.spec, self._outputs, self._torch, self.path)
        self._thread.network = network
        batch = self.spec.batch or 1
        return ThreadExecutor(
            self.gpu, network, self._images, self._outputs, (batch, batch), graphs=False
        )

    @property
    def cuda_graph(self) -> str:
        """Whether the calling thread runs a CUDA graph, which PyTorch records."""
        self._executor()
        text: str = self._thread.network.cuda_graph
        return text

    def close(self) -> None:
        super().close()
        self._torch.release()


class PackageNetwork:
    """Adapts a package to the protocol of :class:`ThreadExecutor`.

    PyTorch records the CUDA graph, because only its own recording tells its allocator to keep the
    memory between the layers for the graph.
    """

    def __init__(
        self, package: Package, spec: ModelSpec, outputs: list[Tensor], gpu: TorchGpu, path: Path
    ) -> None:
        self._package: Package | None = package
        self._spec, self._outputs, self._gpu, self._path = spec, outputs, gpu, path
        self._pointers: dict[str, int] = {}
        self._bound: list[TorchTensor] = []
        self._replay: Run | None = None
        self._warm = self._checked = False

    @property
    def cuda_graph(self) -> str:
        """``"on"``, ``"on from the second call"`` or ``"off: reason"``."""
        if self._replay is not None:
            return "on"
        reason = self._gpu.no_graph
        return f"off: {reason}" if reason else "on from the second call"

    def bind(self, name: str, pointer: int) -> None:
        """As :meth:`Network.bind`; ``reshape`` follows before the next run."""
        self._pointers[name] = pointer

    def reshape(self, batch: int) -> None:
        """As :meth:`Network.reshape`."""
        self._replay, self._warm = None, False
        images = Tensor(INPUT, (*self._spec.image_size, 3), np.dtype(np.uint8))
        try:
            self._bound = [
                self._gpu.tensor(self._pointers[t.name], (batch, *t.shape), t.dtype)
                for t in (images, *self._outputs)
            ]
        except RuntimeError as error:
            raise self._failed(error) from error

    def enqueue(self, stream: int, *, recorded: bool) -> None:
        """As :meth:`Network.enqueue`. The second run is recorded, the later ones repeat it."""
        del recorded  # the executor itself records nothing
        try:
            if self._warm and self._replay is None and not self._gpu.no_graph:
                self._record(stream)
            self._gpu.launch(self._replay or self._run, stream)
        except RuntimeError as error:
            raise self._failed(error) from error
        self._warm = True

    def _failed(self, error: RuntimeError) -> DeviceError:
        return DeviceError(
            f"PyTorch failed to run {self._path.name} on the GPU.",
            why=first_line(error),
            fix="If the memory of the GPU is full (see `nvidia-smi`), compile the package for "
            "smaller batches.",
        )

    def _record(self, stream: int) -> None:
        with CAPTURING:
            if self._gpu.no_graph:  # another thread has just failed
                return
            try:
                self._replay = self._gpu.record(self._run, stream)
            except RuntimeError as error:
                self._gpu.no_graph = first_line(error)

    def _run(self) -> None:
        assert self._package is not None  # the executor refuses closed networks
        images, *bound = self._bound
        with torch.inference_mode():
            found = self._package(images)
            if not self._checked:
                self._check(found)
            for target, output in zip(bound, found, strict=True):
                target.copy_(output)

    def _check(self, found: tuple[TorchTensor, ...]) -> None:
        """Check the outputs of the first run.

        Raises:
            ModelFileError: they have other shapes than the description says.
        """
        shapes = {name: ("", tuple(t.shape)) for name, t in zip(OUTPUTS, found, strict=False)}
        shapes[INPUT] = ("", tuple(self._bound[0].shape))
        check_contract(self._spec, shapes, self._path)
        self._checked = True

    def close(self) -> None:
        """As :meth:`Network.close`."""
        self._package = self._replay = None
        self._bound = []


def check_gpu() -> None:
    """Check that the GPU can be used, with everything that the engine needs besides PyTorch.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: the GPU cannot be used.
    """
    nvrtc_facts()
    open_device()


class TorchGpu:
    """PyTorch on the memory and the streams of an executor.

    Attributes:
        no_graph: reason for running without CUDA graphs; empty if they are used.
    """

    no_graph = ""

    def __init__(self, index: int) -> None:
        self._place = torch.device("cuda", index)

    def load(self, path: Path) -> Package:
        """Open a package for one thread, and wait until its weights are on the GPU."""
        # A package that several threads may use cannot be recorded.
        alone = not self.no_graph
        package = load_package(path, single_threaded=alone, index=self._place.index)
        torch.cuda.synchronize(self._place)
        return package

    def release(self) -> None:
        """Free the memory that PyTorch keeps for later."""
        with CAPTURING:
            torch.cuda.empty_cache()

    def tensor(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TorchTensor:
        """A view of GPU memory, which must outlive it."""
        bits = dtype if dtype.kind in "iuf" else np.dtype(f"i{dtype.itemsize}")  # not bfloat16
        view = SimpleNamespace(
            __cuda_array_interface__={
                "shape": shape, "typestr": bits.str, "data": (pointer, False), "version": 2,
            }
        )  # fmt: skip
        return torch.as_tensor(view, device=self._place).view(getattr(torch, dtype.name))

    def launch(self, run: Run, stream: int) -> None:
        """Enqueue ``run`` on a stream."""
        with torch.cuda.stream(self._stream(stream)):
            run()

    def record(self, run: Run, stream: int) -> Run:
        """Record ``run`` as a CUDA graph.

        Returns:
            function for :meth:`launch` that repeats it.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        cuda: Any = torch.cuda  # its classes have no annotations
        graph = cuda.CUDAGraph()
        own = self._stream(stream)
        try:
            # The outer block: after an error, the inner one does not leave the stream.
            with cuda.stream(own), cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
                run()
        except BaseException:
            BROKEN_GRAPHS.append(graph)
            raise
        replay: Run = graph.replay
        return replay

    def _stream(self, stream: int) -> Any:
        kind: Any = torch.cuda.ExternalStream
        return kind(int(stream), device=self._place)


def outputs_of(spec: ModelSpec) -> list[Tensor]:
    """The outputs that the description specifies.

    Raises:
        MissingDependencyError: bfloat16 needs ``ml_dtypes``.
    """
    kind = PRECISIONS[spec.precision].dtype
    dtype = numpy_bfloat16("This package") if kind == "bfloat16" else np.dtype(kind)
    shapes = (spec.num_queries, len(spec.classes) + 1), (spec.num_queries, *spec.mask_size)
    return [Tensor(name, shape, dtype) for name, shape in zip(OUTPUTS, shapes, strict=True)]
