"""Base class of engines whose inputs and outputs can stay on an NVIDIA GPU."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.cuda import Device, DeviceArray
from eomt_deploy.cuda.executor import Tensor, ThreadExecutor
from eomt_deploy.errors import MissingDependencyError, UsageError

THREADS_DO_NOT_APPLY = "The number of threads does not apply to the network, which runs on the GPU."


def copies_everything(error: MissingDependencyError) -> str:
    """The remark of an engine that runs on the GPU, but not from and to its memory."""
    slow = "Images and outputs are copied between CPU and GPU, which is slow."
    return f"{slow} {error.what} {error.fix}"


def numpy_bfloat16(what: str) -> np.dtype[Any]:
    """The numpy dtype of bfloat16.

    Args:
        what: what returns it, for the message.

    Raises:
        MissingDependencyError: ``ml_dtypes`` is not installed.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} returns bfloat16, which numpy supports only with ml_dtypes.",
            fix="pip install ml_dtypes",
        ) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


class GpuEngine(Engine):
    """Any number of threads may run it in parallel: each has its own executor, with its own streams
    and buffers. ``run`` takes and returns host memory; ``run_device`` keeps everything on the GPU.

    A subclass sets :attr:`gpu`, ``_outputs`` and the attributes of :class:`Engine`.

    Attributes:
        gpu: the GPU, for allocating, copying or launching kernels beside the engine.
    """

    splits = True
    gpu: Device
    _outputs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()
        self._executors: weakref.WeakSet[ThreadExecutor] = weakref.WeakSet()
        self._lock = threading.Lock()

    @abstractmethod
    def _make_executor(self) -> ThreadExecutor:
        """An executor for the calling thread. The GPU is active, and ``_lock`` is held."""

    def _has_run(self, count: int) -> None:
        """Called after each run of ``count`` images."""

    def _executor(self) -> ThreadExecutor:
        """The executor of the calling thread."""
        executor: ThreadExecutor | None = getattr(self._thread, "executor", None)
        if executor is None:
            self._check_open()
            with self._lock, self.gpu.active():
                executor = self._make_executor()
                self._executors.add(executor)
            self._thread.executor = executor
        return executor

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("This engine is closed.", fix="Open it again with open_engine().")

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        class_logits, mask_logits, *_ = self._executor().run(images)
        self._has_run(len(images))
        return class_logits, mask_logits

    def run_named(
        self, images: npt.NDArray[np.uint8], names: Sequence[str]
    ) -> list[npt.NDArray[Any]]:
        """Run one batch, and return outputs by name."""
        found = self._executor().run(images)
        by_name = {tensor.name: array for tensor, array in zip(self._outputs, found, strict=True)}
        return [by_name[name] for name in names]

    def run_device(self, images: Any) -> tuple[DeviceArray, DeviceArray]:
        """Like :meth:`run`, but from GPU memory to GPU memory, and asynchronous.

        Args:
            images: uint8 [B, H, W, 3] with ``__cuda_array_interface__``, in the memory of this
                engine's GPU: a :class:`DeviceArray`, or an array of torch, CuPy, Numba, PyCUDA …
                The engine waits for the stream in its interface (without one, the default stream),
                and for the current stream of this thread in a library with ``__dlpack__``. Before
                that stream overwrites ``images``, let it wait for the engine, e.g. by
                ``torch.from_dlpack(output)``.

        Returns:
            ``class_logits`` [B, Q, C+1] and ``mask_logits`` [B, Q, H/4, W/4] in the output type of
            the engine (float32, float16 or bfloat16), written on :attr:`stream`. The next call of
            this thread overwrites them, so use or copy them before.

        Raises:
            UsageError: the type or shape is wrong, the array is not in this GPU's memory, or the
                engine is closed.
            DeviceError: the GPU failed.
        """
        executor = self._executor()
        array = DeviceArray.wrap(images, self.gpu, reader=executor.stream)
        expected = (*self.spec.image_size, 3)
        if array.dtype != np.uint8 or array.shape[1:] != expected or not len(array):
            raise UsageError(
                f"The engine takes uint8 [B, {', '.join(map(str, expected))}] on GPU "
                f"{self.gpu.index}, got {array!r}.",
                fix="Resize the images on the GPU first, or pass a numpy array to run().",
            )
        class_logits, mask_logits, *_ = executor.run_device(array)
        self._has_run(len(array))
        return class_logits, mask_logits

    def input(self, batch: int) -> DeviceArray:
        """Input buffer of the calling thread, uint8 [batch, H, W, 3].

        If images are written to it on :attr:`stream`, :meth:`run_device` does not copy them.

        Raises:
            UsageError: the batch is larger than the maximum of the engine.
        """
        return self._executor().input(batch)

    @property
    def stream(self) -> int:
        """CUDA stream of the calling thread: work on it runs in order with the engine."""
        return self._executor().stream

    @property
    def cuda_graph(self) -> str:
        """Whether the calling thread runs a CUDA graph: "on …" or "off: reason"."""
        return self._executor().cuda_graph

    def _open_executors(self) -> list[ThreadExecutor]:
        with self._lock:
            return list(self._executors)

    def close(self) -> None:
        """Free the GPU memory, except outputs that are still referenced.

        No other thread may run the engine at this time.
        """
        super().close()
        for executor in self._open_executors():
            executor.close()
        self._thread = threading.local()
