"""A network as ONNX file, in ONNX Runtime, OpenVINO or TensorRT."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from eomt_deploy.backends.engine import Outputs
from eomt_deploy.benchmarking.measure.clock import CPU_TIMER, SynchronizingTimer
from eomt_deploy.benchmarking.measure.gpu_clock import DeviceEventTimer
from eomt_deploy.benchmarking.paper.runtimes import Case, Images, Running
from eomt_deploy.errors import DeviceError
from eomt_deploy.privacy import import_openvino, quiet_onnxruntime
from eomt_deploy.spec import METADATA_KEY

OPSET = 20
"""GridSample by its present name, LayerNormalization and Gelu as operators."""
OUTPUTS = ["class_logits", "mask_logits"]


def export(case: Case) -> Path:
    """The network as ONNX file with its description inside, made once."""
    path = case.folder / f"{case.row.name.replace(' ', '-')}.{len(case.images)}.onnx"
    if path.exists():
        return path
    import torch

    from eomt_deploy.benchmarking.paper.torch_runtimes import TYPES

    network = case.build("written", "cpu").to(TYPES[case.precision])
    logger = logging.getLogger("torch.onnx")
    logger.setLevel(logging.ERROR)  # it reports every optional package that is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.onnx.export(
            network,
            (torch.from_numpy(case.images),),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=OUTPUTS,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns it
    program.model.metadata_props[METADATA_KEY] = case.spec.to_json()
    program.save(path, external_data=True)
    return path


def onnxruntime(case: Case) -> Running:
    """ONNX Runtime on the device that was asked for, or an error."""
    return _OnnxRuntime(case)


class _OnnxRuntime(Running):
    def __init__(self, case: Case) -> None:
        import onnxruntime as ort

        quiet_onnxruntime(ort)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if case.threads is not None:
            options.intra_op_num_threads = case.threads
        wanted = "CUDAExecutionProvider" if case.device == "cuda" else "CPUExecutionProvider"
        if wanted not in ort.get_available_providers():
            raise DeviceError(f"this ONNX Runtime has no {wanted}")
        providers = list(dict.fromkeys((wanted, "CPUExecutionProvider")))
        self._session: Any = ort.InferenceSession(export(case), options, providers=providers)
        if self._session.get_providers()[0] != wanted:
            raise DeviceError("ONNX Runtime fell back to the CPU")
        self.device = case.device
        self._images = case.images
        # Inputs and outputs stay on the device between calls; on the CPU this copies nothing.
        self._binding = self._session.io_binding()
        value = ort.OrtValue.ortvalue_from_numpy(case.images, case.device, 0)
        self._binding.bind_ortvalue_input("images", value)
        for name in OUTPUTS:
            self._binding.bind_output(name, case.device)
        gpu = case.device == "cuda"
        self.timer = SynchronizingTimer(self._binding.synchronize_outputs) if gpu else CPU_TIMER
        self.network()

    def network(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def copies(self) -> None:
        self._session.run(OUTPUTS, {"images": self._images})

    def run(self, images: Images) -> Outputs:
        outputs = self._session.run(OUTPUTS, {"images": images})
        return outputs[0].astype(np.float32), outputs[1].astype(np.float32)


def openvino(case: Case) -> Running:
    """OpenVINO on the CPU."""
    return _OpenVino(case)


class _OpenVino(Running):
    def __init__(self, case: Case) -> None:
        openvino = import_openvino()
        kinds = {"fp32": "f32", "bf16": "bf16"}
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": kinds[case.precision],
        }
        if case.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = case.threads
        compiled = openvino.Core().compile_model(export(case), "CPU", settings)
        self._outputs = [compiled.output(name) for name in OUTPUTS]
        self._request: Any = compiled.create_infer_request()
        self._images = case.images
        self.network()

    def network(self) -> None:
        self._request.infer({"images": self._images}, share_inputs=True, share_outputs=True)

    def run(self, images: Images) -> Outputs:
        found = self._request.infer({"images": images})
        class_logits, mask_logits = (found[output].astype(np.float32) for output in self._outputs)
        return class_logits, mask_logits


def tensorrt(case: Case, *, target: Any) -> Running:
    """TensorRT or TensorRT-RTX: built for this GPU, then run by our own engine."""
    return _TensorRt(case, target)


class _TensorRt(Running):
    def __init__(self, case: Case, target: Any) -> None:
        from eomt_deploy.backends.tensorrt.build import build
        from eomt_deploy.backends.tensorrt.config import BuildConfig
        from eomt_deploy.backends.tensorrt.engine import TensorRtEngine

        model = export(case)
        path = model.with_suffix(f".{target}.engine")
        if not path.exists():
            build(BuildConfig(model, path, target=target))
        self._engine = TensorRtEngine(path, device=None, threads=None)
        self.device = "cuda"
        self._images = case.images
        self._input = self._engine.input(len(case.images))
        with self._engine.gpu.active():
            self._engine.gpu.to_device(self._input.pointer, case.images, self._engine.stream)
            self._engine.gpu.synchronize(self._engine.stream)
        self.timer = DeviceEventTimer(self._engine)
        self.network()
        self.remark = f"CUDA graph {self._engine.cuda_graph}"

    def network(self) -> None:
        self._engine.run_device(self._input)

    def copies(self) -> None:
        self._engine.run(self._images)

    def run(self, images: Images) -> Outputs:
        return self._engine.run(images)

    def close(self) -> None:
        self._engine.close()
