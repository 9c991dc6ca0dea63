"""ONNX Runtime on CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.devices import cuda_device_count, is_x86
from eomt_deploy.errors import DeviceError, EomtDeployError, ModelFileError, first_line
from eomt_deploy.model_file import parse_spec, read_model_file, read_onnx_metadata
from eomt_deploy.privacy import quiet_onnxruntime
from eomt_deploy.spec import METADATA_KEY

quiet_onnxruntime(ort)
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
QUIET = 4  # fatal messages only: errors become exceptions with a better explanation
UNCHANGED_GRAPH = (
    "ONNX Runtime runs this graph as it was exported, which is slower than necessary: only graphs "
    "with their weights inside the .onnx file are optimized."
)
CPU_INSTEAD_OF_GPU = (
    "This machine has an NVIDIA GPU, but ONNX Runtime could not start on it and runs on the CPU. "
    "`eomt-deploy doctor` shows what is missing; --device cuda makes this an error."
)


class OnnxRuntimeEngine(Engine):
    """Runs an ``.onnx`` file.

    Args:
        path, device, threads: as in :func:`eomt_deploy.backends.open_engine`.
        reshape: on the CPU, rewrite the graph so that the kernels run faster.

    Attributes:
        arithmetic: ``fp32`` if FP32 replaces FP16 or BF16.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        reshape: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        options = self._options()
        if threads is not None:
            options.intra_op_num_threads = threads
        able = CUDA in ort.get_available_providers() and cuda_device_count() > 0
        wants_cuda = device == "cuda" or (device is None and able)
        if device == "cuda" and CUDA not in ort.get_available_providers():
            raise DeviceError(
                "The installed ONNX Runtime has no CUDA provider (it has "
                f"{', '.join(ort.get_available_providers())}).",
                fix="pip uninstall onnxruntime; pip install 'eomt-deploy[cuda]'",
            )
        source: Path | bytes = path
        if reshape and not wants_cuda and gains_from_reshaping(path):
            from eomt_deploy.backends.onnxruntime.graph import reshaped

            graph = reshaped(path)
            source, self.arithmetic = (path, None) if graph is None else (graph, "fp32")
            if graph is None:
                self.remarks = (UNCHANGED_GRAPH,)
        try:
            session = ort.InferenceSession(
                source,
                options,
                providers=[CUDA, CPU] if wants_cuda else [CPU],
                enable_fallback=int(wants_cuda),  # on the CPU it would print and retry the same
            )
            ports = (*session.get_inputs(), *session.get_outputs())
            tensors = {port.name: (port.type, port.shape) for port in ports}  # may not be UTF-8
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise open_error(path, error) from error
        # ONNX Runtime lists CUDA even without a GPU, and falls back to the CPU silently.
        used = session.get_providers()[0]
        if device == "cuda" and used != CUDA:
            raise DeviceError(
                "ONNX Runtime could not start on the GPU and fell back to the CPU.",
                why="Its CUDA provider did not load: the GPU, driver, CUDA or cuDNN is missing or "
                "has an incompatible version.",
                fix="Run `eomt-deploy doctor` to see what is missing, or pass device='cpu'.",
            )
        if wants_cuda and used != CUDA:
            self.remarks = (CPU_INSTEAD_OF_GPU,)
        self.spec = parse_spec(read_onnx_metadata(path), path)
        check_contract(self.spec, tensors, path)
        self.device = "cuda" if used == CUDA else "cpu"
        self._session: ort.InferenceSession | None = session

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        # CPUs without VNNI accumulate INT8 products in 16 bits, which can overflow: this selects
        # the exact kernels there. Other CPUs ignore it.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = QUIET
        return options

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        class_logits, mask_logits = self.run_named(images, OUTPUTS)
        return class_logits, mask_logits

    def run_named(
        self, images: npt.NDArray[np.uint8], names: Sequence[str]
    ) -> list[npt.NDArray[Any]]:
        """Run one batch, and return outputs by name as float32."""
        assert self._session is not None  # Engine.run refuses closed engines
        try:
            found = self._session.run(names, {INPUT: images})
        except Exception as error:  # as above; the usual reason is that the memory is full
            raise DeviceError(
                f"ONNX Runtime failed on a batch of {len(images)}.",
                why=first_line(error),
                fix="Use smaller batches or images, or a machine with more memory.",
            ) from error
        return [array.astype(np.float32, copy=False) for array in found]

    def close(self) -> None:
        super().close()
        self._session = None


def gains_from_reshaping(path: Path) -> bool:
    """Whether the CPU kernels cannot compute in the precision of a model file."""
    metadata = read_onnx_metadata(path)
    if METADATA_KEY not in metadata:
        return False
    precision = parse_spec(metadata, path).precision
    return precision != "fp32" and (precision != "fp16" or is_x86())  # ARM may have FP16 kernels


def open_error(path: Path, error: Exception) -> EomtDeployError:
    """The error for a session that could not be created, with advice."""
    reason = first_line(error)
    if "bfloat16" in reason or "NOT_IMPLEMENTED" in reason:
        precision = read_model_file(path).spec.precision
        return DeviceError(
            f"ONNX Runtime {ort.__version__} cannot run the {precision} graph {path.name} on this "
            "machine.",
            why=reason,
            fix="Use --backend openvino, build a TensorRT engine from it (eomt-deploy build), or "
            "export with --precision fp16 or fp32. To measure its accuracy only, use --backend "
            "emulation.",
        )
    return ModelFileError(
        f"{path} cannot be opened by ONNX Runtime {ort.__version__}.",
        why=reason,
        fix="Export the checkpoint again, or copy the .onnx file again together with its "
        ".onnx.data file.",
    )
