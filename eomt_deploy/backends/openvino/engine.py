"""OpenVINO on the CPU: the backend that also computes in BF16 and uses AMX."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.backends.openvino.cache import CompiledFile
from eomt_deploy.backends.openvino.graph import normalize_channels_in_place
from eomt_deploy.certificate import UNCHECKED
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.devices import computes_in_bf16, may_overflow_in_int8
from eomt_deploy.errors import DeviceError, ModelFileError, OutputError
from eomt_deploy.external_data import without_links
from eomt_deploy.files import through_links
from eomt_deploy.model_file import parse_spec, read_onnx_metadata, read_xml
from eomt_deploy.precision import QUANTIZED
from eomt_deploy.privacy import import_openvino
from eomt_deploy.spec import METADATA_KEY, ModelSpec

openvino = import_openvino()
Arithmetic = Literal["fp32", "bf16", "fp16"]
VERSION = openvino.__version__.partition("-")[0]
INT8_MAY_OVERFLOW = (
    "This CPU has no VNNI instructions: OpenVINO accumulates INT8 products in 16 bits here, which "
    "can overflow and reduces accuracy. --backend onnxruntime computes them exactly."
)
TYPES: dict[Arithmetic, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's name of each arithmetic."""
ARITHMETIC: dict[str, Arithmetic] = {"fp16": "fp16", "bf16": "bf16"}
"""Arithmetic by exported precision. FP32 models use FP32; OpenVINO's default would compute them in
lower precision, too. For INT8 see :func:`default_arithmetic`."""
ARITHMETIC_KEY = ["eomt_deploy", "arithmetic"]
"""Path in the runtime information of an .xml that stores the arithmetic that `build` chose."""


class OpenVinoEngine(Engine):
    """Runs an ``.onnx`` file, or an ``.xml`` file that `eomt-deploy build` made from one.

    Threads may share an engine.

    Args:
        path, device, threads: as in :func:`eomt_deploy.backends.open_engine`.
        mode: ``latency``: one call uses all cores. ``throughput``: calls from several threads, or
            the images of one batch, run in parallel with fewer cores each.
        arithmetic: see below; None uses the choice of ``build``, else :func:`default_arithmetic`.
        cache: cache the compiled model, see :mod:`eomt_deploy.backends.openvino.cache`, so that
            the next start is faster.
        reshape: rewrite the graph so that OpenVINO runs it faster.

    Attributes:
        arithmetic: what the unquantised layers compute in: ``fp32``, ``fp16`` or ``bf16``.
        from_cache: whether the compiled model came from the cache.
    """

    backend = "openvino"
    device = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        mode: str = "latency",
        arithmetic: Arithmetic | None = None,
        cache: bool = True,
        reshape: bool = True,
    ) -> None:
        super().__init__()
        self.path: Path = path
        core = open_core()
        self.spec, built, certified = describe(core, path)
        wanted = arithmetic or built or default_arithmetic(self.spec.precision)
        self.arithmetic: Arithmetic = wanted if wanted in able(core) else "fp32"
        self.remarks = arithmetic_remarks(arithmetic or built, self.arithmetic)
        if not certified:
            self.remarks += (UNCHECKED,)
        if self.spec.precision == "int8" and may_overflow_in_int8():
            self.remarks += (INT8_MAY_OVERFLOW,)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": mode.upper(),
            "INFERENCE_PRECISION_HINT": TYPES[self.arithmetic],
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled: Any
        self._compiled, self._memory = self._open(core, settings, cache=cache, reshape=reshape)
        self._spreads = mode == "throughput" and self.spec.batch is None
        self._outputs = [self._compiled.output(name) for name in OUTPUTS]
        self._own = threading.local()  # a request serves one thread at a time

    def _open(
        self, core: Any, settings: dict[str, Any], *, cache: bool, reshape: bool
    ) -> tuple[Any, Any]:
        """The compiled model, from the cache or newly compiled, and the memory that it needs."""
        kept = None
        if cache:
            try:
                kept = CompiledFile(core, self.path, settings, reshape)
            except OutputError as error:
                self.remarks += (f"The model is compiled again at each start: {error.what}",)
        found = None if kept is None else kept.load()
        self.from_cache = found is not None
        if found is None:
            found = self._compile(core, settings, reshape), None
            if kept is not None:
                kept.keep(found[0])
        if kept is not None:
            self.remarks += tuple(kept.remarks)
        return found

    def _compile(self, core: Any, settings: dict[str, Any], reshape: bool) -> Any:
        model = read_model(core, self.path)
        tensors = {port.any_name: _described(port) for port in (*model.inputs, *model.outputs)}
        check_contract(self.spec, tensors, self.path)
        if reshape:
            normalize_channels_in_place(model)
        try:
            return core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO {VERSION} cannot compile {self.path.name} for this CPU.",
                why=_last_line(error),
                fix="Use --backend onnxruntime, or export in another precision.",
            ) from error

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        with _explained(len(images)):
            found = self._spread(images) if self._spreads else self._infer(images)
        class_logits, mask_logits = (array.astype(np.float32, copy=False) for array in found)
        return class_logits, mask_logits

    def run_named(
        self, images: npt.NDArray[np.uint8], names: Sequence[str]
    ) -> list[npt.NDArray[Any]]:
        """Run one batch, and return outputs by name."""
        with _explained(len(images)):
            return self._infer(images, [self._compiled.output(name) for name in names])

    def _infer(
        self, images: npt.NDArray[np.uint8], outputs: Sequence[Any] = ()
    ) -> list[npt.NDArray[Any]]:
        if not hasattr(self._own, "request"):
            self._own.request = self._new_request()
        found = self._own.request.infer({INPUT: images}, share_inputs=True)
        return [found[output] for output in outputs or self._outputs]

    def _spread(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """Run every image as a separate request, as many in parallel as OpenVINO recommends.

        Callbacks are not used: they run in OpenVINO's threads, and if such a thread releases the
        last reference to the model, the process crashes.
        """
        if not hasattr(self._own, "requests"):
            room = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._own.requests = [self._new_request() for _ in range(room)]
        requests = self._own.requests
        found: list[list[npt.NDArray[Any]]] = []
        running: deque[Any] = deque()
        try:
            for index in range(len(images)):
                if len(running) == len(requests):
                    found.append(self._result(running.popleft()))
                request = requests[index % len(requests)]
                request.start_async({INPUT: images[index : index + 1]})
                running.append(request)
            while running:
                found.append(self._result(running.popleft()))
        finally:
            for request in running:  # after an error: no request may still run when we return
                with suppress(RuntimeError):
                    request.wait()
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _new_request(self) -> Any:
        request = self._compiled.create_infer_request()
        request.memory = self._memory  # keeps the memory alive as long as the request reads it
        return request

    def _result(self, request: Any) -> list[npt.NDArray[Any]]:
        request.wait()
        return [request.get_tensor(output).data.copy() for output in self._outputs]

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._own = threading.local()
        self._memory = None


@contextmanager
def _explained(batch: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO failed on a batch of {batch}.",
            why=_last_line(error),
            fix="Use smaller batches or images, or a machine with more memory.",
        ) from error


def describe(core: Any, path: Path) -> tuple[ModelSpec, Arithmetic | None, bool]:
    """The description of a model file, the arithmetic that `build` chose, and whether the file has
    been compared with its ONNX model, or is one.

    The graph is read only if the description cannot be found without it.

    Raises:
        ModelFileError: the file is damaged, or was not written by eomt-deploy.
    """
    if path.suffix.lower() == ".xml":
        facts = read_xml(path)
        arithmetic = cast("Arithmetic | None", facts.arithmetic)
        return facts.spec, arithmetic, facts.certificate is not None
    metadata = read_onnx_metadata(path)
    if METADATA_KEY not in metadata:
        # For a damaged file this raises an error with the reason.
        metadata = read_metadata(read_model(core, path), path)
    return parse_spec(metadata, path), None, True


def read_model(core: Any, path: Path) -> Any:
    """Read the graph of an ``.onnx`` or ``.xml`` file.

    Raises:
        ModelFileError: the file is damaged.
    """
    try:
        if path.suffix.lower() == ".xml":
            return core.read_model(through_links(path))  # its .bin is beside the real file
        # Select the frontend by name: otherwise OpenVINO tries a damaged file in other formats.
        frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        with without_links(path) as readable:
            return frontend.convert(frontend.load(str(readable)))
    except ModelFileError:
        raise
    except Exception as error:  # OpenVINO's exceptions have no common base class
        raise ModelFileError(
            f"OpenVINO {VERSION} cannot read {path}: it is damaged, or it is not an "
            f"{'ONNX file' if path.suffix.lower() == '.onnx' else 'OpenVINO model'}.",
            why=_last_line(error),
            fix="Export or build it again, or copy it again together with its .onnx.data or .bin "
            "file.",
        ) from error


def default_arithmetic(precision: str) -> Arithmetic:
    """What the unquantised layers of an export compute in.

    An INT8 model has already been rounded: if the CPU computes in BF16, the rest of it does, too.
    On CamVid, this changes the label agreement with FP32 from 99.72% to 99.72%
    (`benchmarks/results/fidelity-camvid.md`).
    """
    if precision in QUANTIZED and computes_in_bf16():
        return "bf16"
    return ARITHMETIC.get(precision, "fp32")


def open_core() -> Any:
    """OpenVINO with its plugin for the CPU.

    The plugin gives the thread that loads it a signal stack, and takes it back only if the same
    thread closes plugins in the reverse order. Otherwise the next signal there, e.g. Ctrl-C, would
    end the process with a segmentation fault. So the plugin is loaded by a thread that ends.
    """
    core = openvino.Core()
    with ThreadPoolExecutor(1) as loading:
        loading.submit(able, core).result()
    return core


def able(core: Any) -> list[Arithmetic]:
    """Arithmetics that this CPU supports natively."""
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in TYPES if name.upper() in known]


def read_metadata(model: Any, path: Path) -> dict[str, str]:
    """Metadata of the ONNX file, which OpenVINO keeps in the files that it saves, too.

    Raises:
        ModelFileError: the metadata is not text.
    """
    place = ["framework", METADATA_KEY]
    if not model.has_rt_info(place):
        return {}
    try:
        return {METADATA_KEY: str(model.get_rt_info(place).astype(str))}
    except (UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: it is not a string
        raise ModelFileError(
            f"{path}: {METADATA_KEY} cannot be read: {_last_line(error)}.",
            fix="Export or build it again.",
        ) from error


def arithmetic_remarks(wanted: str | None, used: str) -> tuple[str, ...]:
    """The remark for a model that does not run in the arithmetic that was chosen for it."""
    if wanted in (None, used):
        return ()
    return (
        f"The model should compute in {wanted}, which this CPU does not support. It computes in "
        f"{used} instead, which may be slower.",
    )


def _described(port: Any) -> tuple[str, list[int | None]]:
    sizes = [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
    return str(port.element_type), sizes


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
