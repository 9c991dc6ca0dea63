"""ONNX Runtime on an NVIDIA GPU, with inputs and outputs in GPU memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from eomt_deploy.backends.engine import MAX_INPUTS
from eomt_deploy.backends.gpu_engine import GpuEngine
from eomt_deploy.backends.onnxruntime.engine import CPU, CUDA, QUIET, open_error
from eomt_deploy.backends.onnxruntime.graph import fuse_attention
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.cuda import Device, open_device
from eomt_deploy.cuda.executor import CAPTURING, Tensor, ThreadExecutor
from eomt_deploy.cuda.nvrtc import nvrtc_facts
from eomt_deploy.errors import DeviceError, ModelFileError, first_line
from eomt_deploy.model_file import parse_spec, read_onnx_metadata

SHAPE_OPERATORS = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "Equal", "Expand", "Gather", "Range", "Shape",
    "Slice", "Squeeze", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that ONNX Runtime computes on the CPU on purpose: they compute shapes."""

ATTENTION_NOT_FUSED = (
    "Attention runs as separate operators, which is slower: ONNX Runtime's fused operator needs a "
    "graph as eomt-deploy exports it, with the weights inside the .onnx file."
)
GPU_WORDS = ("cuda", "cudnn", "cublas", "alloc", "memory", "provider")
"""Words in errors of ONNX Runtime that are about the GPU, not about the model file."""


class MoreOutputsError(DeviceError):
    """The graph has outputs whose shapes are not known before a run: see bisection.py."""


class NotOnGpuError(DeviceError):
    """ONNX Runtime would compute a part of the network on the CPU."""


class OnnxRuntimeGpuEngine(GpuEngine):
    """Runs an ``.onnx`` file with ONNX Runtime's CUDA provider; arguments as in
    :func:`eomt_deploy.backends.open_engine`.

    Each thread has its own session, whose stream cannot be changed, and so its own weights.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: ONNX Runtime cannot use the GPU, or would compute a part of the network on the
            CPU.
        ModelFileError: the file is not a model that ONNX Runtime can open.
    """

    backend = "onnxruntime"

    memory = "cuda"
    """ONNX Runtime's name of the memory that the buffers are in."""

    def __init__(
        self, path: Path, *, device: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__()
        self.path: Path = path
        self.device = "cuda"
        self.spec = parse_spec(read_onnx_metadata(path), path)
        nvrtc_facts()  # needed by the kernels of the pre- and post-processing
        self.gpu = self._open_gpu()
        self._fused = True
        self._source: Path | bytes | None
        self._source, self._outputs = for_gpu(path)
        if self._source is path:
            self.remarks += (ATTENTION_NOT_FUSED,)
        self._images = Tensor(INPUT, (*self.spec.image_size, 3), np.dtype(np.uint8))
        self._executor()  # now, so that errors are reported when the engine is opened

    def _open_gpu(self) -> Device:
        return open_device()

    def _providers(self, stream: int) -> list[Any]:
        """The providers and their options.

        With TF32, FP32 would have a relative error of 1e-3, as FP16.
        """
        options = {
            "device_id": str(self.gpu.index), "user_compute_stream": str(int(stream)),
            "use_tf32": "0",
        }  # fmt: skip
        return [(CUDA, options), CPU]

    def _make_executor(self) -> ThreadExecutor:
        network = self._network()
        batch = self.spec.batch
        largest = batch or MAX_INPUTS
        executor = ThreadExecutor(
            self.gpu, network, self._images, self._outputs, (batch or 1, largest), graphs=True
        )
        with CAPTURING:  # ONNX Runtime waits for the complete GPU when it opens a session
            network.open(self._open_session(executor.stream))
        return executor

    def _network(self) -> SessionNetwork:
        return SessionNetwork(self._images, self._outputs, self.memory, self.gpu.index)

    def _open_session(self, stream: int) -> ort.InferenceSession:
        """A session on this stream. Attention stays as it is if the fused operator cannot run."""
        source = self._source or for_gpu(self.path)[0]
        self._source = None  # other threads read the file again
        if isinstance(source, bytes) and self._fused:
            try:
                return self._try_session(source, stream)
            except (NotOnGpuError, ModelFileError) as error:
                reason = error.why
            self._fused = False
            self.remarks += (
                f"ONNX Runtime {ort.__version__} cannot run the fused attention operator here, so "
                f"attention is slower. {reason}",
            )
        return self._try_session(self.path, stream)

    def _try_session(self, source: Path | bytes, stream: int) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # A memory pattern would be allocated in the second run, which is recorded as a CUDA graph.
        options.enable_mem_pattern = False
        try:
            session = ort.InferenceSession(
                source, options, providers=self._providers(stream), enable_fallback=0
            )
            ports = (*session.get_inputs(), *session.get_outputs())
            tensors = {port.name: (port.type, port.shape) for port in ports}  # may not be UTF-8
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            reason = first_line(error)
            if any(word in reason.lower() for word in GPU_WORDS):
                raise DeviceError(
                    f"ONNX Runtime cannot open {self.path.name} on the GPU.",
                    why=reason,
                    fix="Run `eomt-deploy doctor` and `nvidia-smi` to see what is missing, or pass "
                    "device='cpu'.",
                ) from error
            raise open_error(self.path, error) from error
        check_contract(self.spec, tensors, self.path)
        self._check_placement(session)
        return session

    def _check_placement(self, session: ort.InferenceSession) -> None:
        """Check that ONNX Runtime computes the complete network on the GPU.

        Raises:
            DeviceError: it does not.
        """
        if session.get_providers()[0] != CUDA:  # without an error
            raise DeviceError(
                "ONNX Runtime could not start on the GPU and fell back to the CPU.",
                why="Its CUDA provider did not load: the GPU, driver, CUDA or cuDNN is missing or "
                "has an incompatible version.",
                fix="Run `eomt-deploy doctor` to see what is missing, or pass device='cpu'.",
            )
        left = computed_on_cpu(session)
        if left:
            raise NotOnGpuError(
                f"ONNX Runtime {ort.__version__} would compute a part of {self.path.name} on the "
                "CPU.",
                why=f"Its CUDA provider cannot run these operators: {', '.join(left)}.",
                fix="Build a TensorRT engine from it (eomt-deploy build), or export with "
                "--precision fp16 or fp32.",
            )


class SessionNetwork:
    """Adapts a session to the protocol of :class:`ThreadExecutor`.

    After a run that the CPU does not wait for, ONNX Runtime keeps the temporary buffers until it
    waits for another one. So only the run that is recorded as a graph, which owns its buffers, is
    of this kind.
    """

    def __init__(self, images: Tensor, outputs: list[Tensor], memory: str, index: int) -> None:
        self._images, self._outputs = images, outputs
        self._place = memory, index
        self._pointers: dict[str, int] = {}
        self._known: set[tuple[int, ...]] = set()
        self._without_waiting = ort.RunOptions()
        self._without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session: ort.InferenceSession | None = None
        self._binding: ort.IOBinding | None = None

    def open(self, session: ort.InferenceSession) -> None:
        """Set the session, before the first run."""
        self._session = session

    def bind(self, name: str, pointer: int) -> None:
        """As :meth:`Network.bind`; ``reshape`` follows before the next run."""
        self._pointers[name] = pointer

    def reshape(self, batch: int) -> None:
        """As :meth:`Network.reshape`. The first time, it runs once, which allocates memory."""
        assert self._session is not None
        binding = self._session.io_binding()
        for bind, tensor in (
            (binding.bind_input, self._images),
            *((binding.bind_output, output) for output in self._outputs),
        ):
            bind(
                tensor.name, *self._place, tensor.dtype.type, (batch, *tensor.shape),
                self._pointers[tensor.name],
            )  # fmt: skip
        self._binding = binding
        shape = batch, *self._pointers.values()
        if shape not in self._known:
            self.run(None)
            self._known.add(shape)

    def enqueue(self, stream: int, *, recorded: bool) -> None:
        """As :meth:`Network.enqueue`; the stream is that of the session."""
        self.run(self._without_waiting if recorded else None)

    def close(self) -> None:
        """As :meth:`Network.close`."""
        if self._binding is not None:
            with suppress(DeviceError):  # a broken GPU cannot free anything
                self.run(None)
        self._binding = self._session = None

    def run(self, options: ort.RunOptions | None) -> None:
        """Enqueue one run.

        Raises:
            DeviceError: the GPU failed.
        """
        assert self._session is not None
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # as above
            raise DeviceError(
                "ONNX Runtime failed to run the network on the GPU.",
                why=first_line(error),
                fix="If the memory of the GPU is full (see `nvidia-smi`), use smaller batches.",
            ) from error


def for_gpu(path: Path) -> tuple[Path | bytes, list[Tensor]]:
    """A model file with fused attention (or the file itself, if it stays so), and its outputs.

    Raises:
        ModelFileError: the file is damaged.
        MoreOutputsError: the graph has other outputs, too.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        values = {value.name: value for value in model.graph.output}
        missing = [name for name in OUTPUTS if name not in values]
        if missing:
            raise ValueError(f"it has no output {missing[0]}")
        outputs = [_tensor(values[name]) for name in OUTPUTS]
        more = [name for name in values if name not in OUTPUTS]
    except Exception as error:  # the protobuf library has many exceptions
        raise open_error(path, error) from error
    if more:
        raise MoreOutputsError(f"{path.name} has the additional output {more[0]}.")
    outside = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    try:
        fused = 0 if outside else fuse_attention(model, gpu=True)
    except Exception:  # the graph is damaged: ONNX Runtime reports the reason when it opens it
        fused = 0
    return (bytes(model.SerializeToString()) if fused else path), outputs


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value for dim in kind.shape.dim[1:])
    return Tensor(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def computed_on_cpu(session: ort.InferenceSession) -> list[str]:
    """Operators that the session computes on the CPU, except those that compute shapes.

    Empty before ONNX Runtime 1.24, which does not report it.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        }
        - SHAPE_OPERATORS
    )
