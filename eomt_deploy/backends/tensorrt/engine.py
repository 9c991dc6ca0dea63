"""TensorRT and TensorRT-RTX on an NVIDIA GPU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.gpu_engine import GpuEngine, numpy_bfloat16
from eomt_deploy.backends.tensorrt import library
from eomt_deploy.backends.tensorrt.compatibility import check_machine, check_trust, this_machine
from eomt_deploy.backends.tensorrt.jit_cache import JitCache, cache_file
from eomt_deploy.certificate import UNCHECKED
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.cuda import Device, open_device
from eomt_deploy.cuda.executor import Tensor, ThreadExecutor, split
from eomt_deploy.errors import DeviceError, ModelFileError, UsageError
from eomt_deploy.sidecar import Target, check_plan, known_target, onnx_sha256, read_sidecar


def numpy_type(name: str) -> np.dtype[Any]:
    """The numpy dtype for the name of a ``DataType`` of the library.

    Raises:
        ModelFileError: engines of eomt-deploy have no tensors of this type.
        MissingDependencyError: bfloat16 needs ``ml_dtypes``.
    """
    if name == "BF16":
        return numpy_bfloat16("This engine")
    types: dict[str, npt.DTypeLike] = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}
    if name not in types:
        raise ModelFileError(
            f"The engine has a tensor of type {name}, expected {', '.join([*types, 'BF16'])}.",
            fix="Rebuild it from a model that this version of eomt-deploy exported.",
        )
    return np.dtype(types[name])


class TensorRtEngine(GpuEngine):
    """Runs a ``.engine`` file with the library that built it; arguments as in
    :func:`eomt_deploy.backends.open_engine`.

    Each thread has its own execution context, and all share the weights.

    Args:
        built_from: ONNX model that this process has just built the engine from. Then the engine is
            trusted, and the weights that it lacks are loaded from there.

    Attributes:
        sidecar: description of the engine.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        built_from: Path | None = None,
    ) -> None:
        super().__init__()
        if threads is not None:
            raise UsageError(
                "`threads` does not apply to this engine, which runs on the GPU.",
                fix="Leave it out.",
            )
        self.path: Path = path
        self.sidecar = read_sidecar(path)
        self.spec = self.sidecar.spec
        target = known_target(self.sidecar)
        self.backend, self.device = target, "cuda"
        # Check everything before the library is called: without a GPU it crashes the process.
        self.remarks = check_machine(self.sidecar, this_machine(target), engine=path)
        if built_from is None:
            check_trust(self.sidecar)
        if self.sidecar.settings.get("tf32") == "yes" and self.spec.precision == "fp32":
            self.arithmetic = "tf32"
        if self.sidecar.certificate is None and built_from is None:
            self.remarks += (UNCHECKED,)
        check_plan(path, self.sidecar, full=True)
        self.gpu: Device = open_device()
        module = library.load(target)
        with self.gpu.active(), library.captured_log(target) as lines:
            self._engine = self._open(module, target, lines)
            if self.sidecar.stripped:
                onnx = built_from or path.with_name(Path(self.sidecar.onnx).name)
                self._refit(module, target, lines, onnx)
            self.remarks += tuple(
                f"Warning of {library.NAMES[target]}: {text}"
                for text in library.complaints(lines, kind="warning")
            )
        self._images, *self._outputs = self._tensors()
        self._jit: JitCache | None = None
        if target == "tensorrt-rtx":
            kept = cache_file(self.sidecar.plan_sha256, str(module.__version__), self.gpu.name)
            with self.gpu.active():  # the cache compares its file with the current GPU
                self._jit = JitCache(module, self._engine, kept, self._lock)

    def _open(self, module: Any, target: Target, lines: list[library.Line]) -> Any:
        self._runtime = runtime = module.Runtime(library.logger(target))
        if self.sidecar.version_compatible:  # check_trust has allowed its code
            runtime.engine_host_code_allowed = True
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        ):
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DeviceError(
                f"{library.NAMES[target]} {module.__version__} cannot open {self.path}.",
                why="\n".join(library.complaints(lines)) or "It reported no reason.",
                fix="Check the free GPU memory and the driver version with `nvidia-smi`, or "
                f"rebuild the engine on this machine: eomt-deploy build {self.sidecar.onnx}",
            )
        return engine

    def _refit(self, module: Any, target: Target, lines: list[library.Line], onnx: Path) -> None:
        """Load the weights of the ONNX file into an engine that was built without weights."""
        if not onnx.is_file():
            raise ModelFileError(
                f"{self.path} contains no weights, and {onnx} does not exist.",
                why="The engine was built with --strip-weights and loads its weights from the "
                "model it was built from.",
                fix=f"Copy {onnx.name} to the folder of the engine, or rebuild it without "
                "--strip-weights.",
            )
        found = onnx_sha256(onnx)
        if found != self.sidecar.onnx_sha256:
            raise ModelFileError(
                f"{onnx} is not the model that {self.path.name} was built from: its SHA-256 is "
                f"{found[:12]}…, expected {self.sidecar.onnx_sha256[:12]}….",
                fix=f"Copy the matching {onnx.name} to this folder, with its .onnx.data file if it "
                "has one.",
            )
        log = library.logger(target)
        refitter = module.Refitter(self._engine, log)
        parser = module.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_file(os.fsencode(onnx)) or not refitter.refit_cuda_engine():
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            missing = refitter.get_missing_weights()
            if missing:
                reasons.append(f"{len(missing)} weights are missing, e.g. {missing[0]}")
            raise DeviceError(
                f"{library.NAMES[target]} cannot load the weights of {onnx.name} into "
                f"{self.path.name}.",
                why="\n".join(reasons or library.complaints(lines)),
                fix="Rebuild the engine without --strip-weights.",
            )

    def _tensors(self) -> list[Tensor]:
        """Input and outputs of the engine, after checking them against the contract."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        # The engine's own batch is not compared: a dynamic-batch model may become an engine with a
        # fixed batch, and the sidecar has its range.
        check_contract(
            self.spec,
            {name: ("", (self.spec.batch, *shape[1:])) for name, shape in shapes.items()},
            self.path,
        )
        more = [name for name in names if name not in (INPUT, *OUTPUTS)]  # see bisection.py
        return [
            Tensor(name, shapes[name][1:], numpy_type(engine.get_tensor_dtype(name).name))
            for name in (INPUT, *OUTPUTS, *more)
        ]

    def _make_executor(self) -> ThreadExecutor:
        config = None if self._jit is None else self._jit.config()
        context = (
            self._engine.create_execution_context()
            if config is None
            else self._engine.create_execution_context(config)
        )
        if context is None:
            raise _failure(self.backend, "could not create an execution context on the GPU")
        minimum, _, largest = self.sidecar.batch
        executor = ThreadExecutor(
            self.gpu,
            _Network(context, (config, self._jit), self.backend, self._images.shape),
            self._images,
            self._outputs,
            (minimum, largest),
            graphs=self._jit is None,
        )
        if self._jit is not None:
            executor.cuda_graph = "on, by TensorRT-RTX"
        return executor

    @property
    def memory_bytes(self) -> int:
        """Approximate GPU memory of this engine in bytes: weights, and the activations and buffers
        of each thread.

        ``gpu.memory()`` returns the free and total memory of the GPU.
        """
        self._check_open()
        executors = self._open_executors()
        activations: int
        if hasattr(self._engine, "device_memory_size_v2"):
            activations = self._engine.device_memory_size_v2
        else:  # TensorRT 10.0
            activations = self._engine.device_memory_size
        buffers = sum(executor.bytes for executor in executors)
        return self.sidecar.plan_bytes + len(executors) * activations + buffers

    def _has_run(self, count: int) -> None:
        if self._jit is not None:
            minimum, _, largest = self.sidecar.batch
            self._jit.remember(split(count, minimum, largest)[0].batch)

    def close(self) -> None:
        """As :meth:`GpuEngine.close`."""
        if self._closed:
            return
        super().close()
        with self.gpu.active():
            self._jit = None
            self._engine = None
            self._runtime = None


class _Network:
    """Adapts an execution context to the executor's protocol."""

    def __init__(self, context: Any, needs: object, target: str, shape: Sequence[int]) -> None:
        self._context, self._needs = context, needs  # released in this order
        self._target, self._shape = target, tuple(shape)

    def bind(self, name: str, pointer: int) -> None:
        if not self._context.set_tensor_address(name, pointer):
            raise _failure(self._target, f"rejected the address of the tensor {name}")

    def reshape(self, batch: int) -> None:
        if not self._context.set_input_shape(INPUT, (batch, *self._shape)):
            raise _failure(self._target, f"rejected a batch of {batch}")

    def close(self) -> None:
        pass

    def enqueue(self, stream: int, *, recorded: bool) -> None:
        if not self._context.execute_async_v3(stream):
            raise _failure(self._target, "failed to run the engine")


def _failure(target: str, what: str) -> DeviceError:
    """The error for a failed call of the library, with its latest log messages."""
    known: Target = "tensorrt-rtx" if target == "tensorrt-rtx" else "tensorrt"
    latest = library.logger(known).lines[:-21:-1]  # older lines may belong to another run
    return DeviceError(
        f"{library.NAMES[known]} {what}.",
        why="\n".join(reversed(library.complaints(latest))),
        fix="Check with `nvidia-smi` whether the GPU's memory is full; if so, use smaller batches.",
    )
