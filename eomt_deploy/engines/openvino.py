"""OpenVINO on the CPU: the run-time that also computes in BF16 and uses AMX."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

from eomt_deploy.artifact import check_contract, parse_spec
from eomt_deploy.engines.base import Engine, Outputs
from eomt_deploy.errors import ArtifactError, DeviceError
from eomt_deploy.files import cache_folder
from eomt_deploy.spec import METADATA_KEY

OUTPUT_NAMES = ("class_logits", "mask_logits")
HINTS = {"fp16": ("FP16", "f16"), "bf16": ("BF16", "bf16")}
"""What the chip must be capable of, and what OpenVINO calls it; all else is computed in FP32, with
integer kernels where the graph is quantised. OpenVINO itself would lower FP32 graphs, too."""


class OpenVinoEngine(Engine):
    """Runs an ``.onnx`` file, or an ``.xml`` that OpenVINO made of one.

    What was compiled is kept in the cache folder, so that the second start is quick. Threads may
    share an engine.

    Attributes:
        arithmetic: what the unquantised part is computed in: ``f32``, ``f16`` or ``bf16``.
    """

    backend = "openvino"
    device = "cpu"

    def __init__(self, path: Path, *, device: str | None, threads: int | None) -> None:
        super().__init__()
        self.path = path
        core = openvino.Core()
        with suppress(RuntimeError):  # without a place for the cache the start is slower
            core.set_property({"CACHE_DIR": str(cache_folder() / "openvino")})
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise _damaged(path, error) from error
        self.spec = parse_spec(_metadata(model), path)
        tensors = {port.any_name: _described(port) for port in (*model.inputs, *model.outputs)}
        check_contract(self.spec, tensors, path)
        capability, hint = HINTS.get(self.spec.precision, ("FP32", "f32"))
        able = capability in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.arithmetic = hint if able else "f32"
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.arithmetic,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO {openvino.__version__} cannot compile {path.name} for this CPU.",
                why=_first_line(error),
                fix="Use --backend onnxruntime, or export in another precision.",
            ) from error
        self._outputs = [self._compiled.output(name) for name in OUTPUT_NAMES]
        self._own = threading.local()  # a request serves one thread at a time

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        try:
            found = self._own.request.infer({"images": images}, share_inputs=True)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO failed on a batch of {len(images)}.",
                why=_first_line(error),
                fix="Use smaller batches or images, or a machine with more memory.",
            ) from error
        class_logits, mask_logits = (
            found[output].astype(np.float32, copy=False) for output in self._outputs
        )
        return class_logits, mask_logits

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._own = threading.local()


def _metadata(model: Any) -> dict[str, str]:
    """The ONNX file's metadata, which OpenVINO keeps, also in what it saves."""
    place = ["framework", METADATA_KEY]
    return {METADATA_KEY: model.get_rt_info(place).astype(str)} if model.has_rt_info(place) else {}


def _described(port: Any) -> tuple[str, list[int | None]]:
    sizes = [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
    return str(port.element_type), sizes


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be read by OpenVINO {openvino.__version__}.",
        why=_first_line(error),
        fix="Export it again; copy a .onnx.data or .bin file along with it.",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
