"""OpenVINO on the CPU: the run-time that also computes in BF16 and uses AMX."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino
from openvino.frontend import FrontEndManager

from eomt_deploy.artifact import check_arithmetic, check_contract, parse_spec
from eomt_deploy.engines.base import Engine, Outputs
from eomt_deploy.engines.openvino_graph import normalize_channels_in_place
from eomt_deploy.errors import ArtifactError, DeviceError
from eomt_deploy.files import cache_folder, through_links
from eomt_deploy.spec import METADATA_KEY

Arithmetic = Literal["f32", "bf16", "f16"]
VERSION = openvino.__version__.partition("-")[0]
OUTPUT_NAMES = ("class_logits", "mask_logits")
CAPABILITIES: dict[str, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What OpenVINO says of a chip that computes in it."""
ARITHMETIC: dict[str, Arithmetic] = {"fp16": "f16", "bf16": "bf16"}
"""By the precision of the export; all else is computed in FP32, with integer kernels where the
graph is quantised. OpenVINO itself would lower FP32 graphs, too."""
ARITHMETIC_KEY = ["eomt_deploy", "arithmetic"]
"""Where an .xml tells what `build` chose."""


class OpenVinoEngine(Engine):
    """Runs an ``.onnx`` file, or an ``.xml`` that `eomt-deploy build` made of one.

    The second start of a model is quick. Threads may share an engine.

    Args:
        path, device, threads: as in :func:`eomt_deploy.engines.open_engine`.
        mode: ``latency``: one call has all cores. ``throughput``: calls from several threads, or
            the images of one batch, run side by side on fewer cores each.
        arithmetic: see below; None takes what ``build`` chose, else what the export says.
        cache: keep what was compiled.
        reshape: bring the graph into the form that this run-time is fastest with.

    Attributes:
        arithmetic: what the unquantised part is computed in: ``f32``, ``f16`` or ``bf16``.
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
        self.path = path
        core = openvino.Core()
        if cache:
            with suppress(RuntimeError):  # without a place for it the start is slower
                core.set_property({"CACHE_DIR": str(cache_folder() / "openvino")})
        model = read_model(core, path)
        self.spec = parse_spec(read_metadata(model, path), path)
        tensors = {port.any_name: _described(port) for port in (*model.inputs, *model.outputs)}
        check_contract(self.spec, tensors, path)
        if reshape:
            normalize_channels_in_place(model)
        built = check_arithmetic(built_arithmetic(model, path), path)
        wanted = arithmetic or built or ARITHMETIC.get(self.spec.precision, "f32")
        self.arithmetic = wanted if wanted in able(core) else "f32"
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": mode.upper(),
            "INFERENCE_PRECISION_HINT": self.arithmetic,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO {VERSION} cannot compile {path.name} for this CPU.",
                why=_first_line(error),
                fix="Use --backend onnxruntime, or export in another precision.",
            ) from error
        self._spreads = mode == "throughput" and self.spec.batch is None
        self._outputs = [self._compiled.output(name) for name in OUTPUT_NAMES]
        self._own = threading.local()  # a request serves one thread at a time

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        try:
            found = self._spread(images) if self._spreads else self._infer(images)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO failed on a batch of {len(images)}.",
                why=_first_line(error),
                fix="Use smaller batches or images, or a machine with more memory.",
            ) from error
        class_logits, mask_logits = (array.astype(np.float32, copy=False) for array in found)
        return class_logits, mask_logits

    def _infer(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found = self._own.request.infer({"images": images}, share_inputs=True)
        return [found[output] for output in self._outputs]

    def _spread(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """Every image as a request of its own, as many at once as the chip has room for."""
        found: list[list[npt.NDArray[Any]]] = [[] for _ in images]

        def keep(request: Any, index: int) -> None:
            found[index] = [request.get_tensor(output).data.copy() for output in self._outputs]

        if not hasattr(self._own, "queue"):
            self._own.queue = openvino.AsyncInferQueue(self._compiled)
        queue = self._own.queue
        queue.set_callback(keep)
        try:
            for index in range(len(images)):
                queue.start_async({"images": images[index : index + 1]}, index)
        finally:
            queue.wait_all()
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._own = threading.local()


def read_model(core: Any, path: Path) -> Any:
    """The graph of an ``.onnx`` or ``.xml`` file.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        if path.suffix.lower() == ".xml":
            return core.read_model(through_links(path))  # its .bin is beside the real file
        # By name: else a damaged file is held for one of six other formats.
        frontend = FrontEndManager().load_by_framework("onnx")
        return frontend.convert(frontend.load(str(path)))
    except Exception as error:  # its classes have nothing in common but this
        raise ArtifactError(
            f"{path} cannot be read by OpenVINO {VERSION}: it is damaged, or no "
            f"{'ONNX file' if path.suffix.lower() == '.onnx' else 'model of OpenVINO'}.",
            why=_first_line(error),
            fix="Export or build it again; copy its .onnx.data or .bin file along with it.",
        ) from error


def able(core: Any) -> list[Arithmetic]:
    """What this CPU computes in by itself."""
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names: tuple[Arithmetic, ...] = ("f32", "bf16", "f16")
    return [name for name in names if CAPABILITIES[name] in known]


def read_metadata(model: Any, path: Path) -> dict[str, str]:
    """The ONNX file's metadata, which OpenVINO keeps, also in what it saves.

    Raises:
        ArtifactError: they are no text.
    """
    found = _runtime_info(model, ["framework", METADATA_KEY], path)
    return {} if found is None else {METADATA_KEY: found}


def built_arithmetic(model: Any, path: Path) -> Any:
    """What `build` chose; None for a file that it did not write.

    Raises:
        ArtifactError: it is no text.
    """
    return _runtime_info(model, ARITHMETIC_KEY, path)


def _runtime_info(model: Any, place: list[str], path: Path) -> str | None:
    if not model.has_rt_info(place):
        return None
    try:
        return str(model.get_rt_info(place).astype(str))
    except (UnicodeDecodeError, RuntimeError) as error:  # the latter: it holds no text
        raise ArtifactError(
            f"{path}: {place[-1]} cannot be read: {_first_line(error)}.",
            fix="Export or build it again.",
        ) from error


def _described(port: Any) -> tuple[str, list[int | None]]:
    sizes = [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
    return str(port.element_type), sizes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
