"""The GPU engine of ONNX Runtime on a simulated GPU: see simulated_onnxruntime.py."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
from host_twin import HostDevice, put, twin
from simulated_gpu import SimulatedGpu
from simulated_onnxruntime import SimulatedOnnxRuntime as Simulated

from eomt_deploy import Segmenter
from eomt_deploy.backends import open_engine
from eomt_deploy.backends.onnxruntime import gpu as module
from eomt_deploy.backends.onnxruntime.engine import CPU, OnnxRuntimeEngine
from eomt_deploy.backends.onnxruntime.gpu import (
    OnnxRuntimeGpuEngine,
    computed_on_cpu,
)
from eomt_deploy.backends.onnxruntime.open import open_onnxruntime
from eomt_deploy.errors import DeviceError, MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.exporting import graph
from eomt_deploy.labels import label_map
from eomt_deploy.processing.cuda.kernels import Kernels


@pytest.mark.parametrize(
    ("seed", "precision", "batch"),
    [
        (0, "fp32", None), (1, "fp32", None), (2, "fp32", 2),
        (3, "fp16", None), (4, "fp16", None), (5, "fp16", 2),
    ],
)  # fmt: skip
def test_results_are_those_of_the_cpu(saved, precision, batch, seed):
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    path = saved(precision, batch)
    images = tiny.images(11)
    wanted = OnnxRuntimeEngine(path, device="cpu", reshape=False).run(images)
    gpu = SimulatedGpu(seed)
    with Simulated(path, gpu) as engine:
        for count in (1, 3, 3, 11, 2):  # 11: in parts
            found = engine.run(images[:count])
            on_gpu = engine.run_device(put(gpu, images[:count]))
            assert [array.dtype for array in on_gpu] == [dtype, dtype]
            for have, also, want in zip(found, on_gpu, wanted, strict=True):
                assert have.dtype == np.float32
                allowed = 3e-3 * np.abs(want).max()
                assert np.abs(have - want[:count]).max() < allowed
                np.testing.assert_array_equal(also.copy_to_host(engine.stream), have)
    del on_gpu, also
    gc.collect()
    assert not gpu.live


def test_the_second_run_is_a_cuda_graph(saved):
    gpu = SimulatedGpu()
    with Simulated(saved("fp32"), gpu) as engine:
        assert engine.cuda_graph == "on from the second call"
        first = engine.run(tiny.images(1))
        second = engine.run(tiny.images(1))
        third = engine.run(tiny.images(2)[1:])
        assert engine.cuda_graph == "on"
        assert gpu.launches == 2
        np.testing.assert_array_equal(first[1], second[1])
        np.testing.assert_array_equal(third[1], engine.run(tiny.images(2))[1][1:])


def test_attention_is_fused(saved):
    with Simulated(saved("fp16"), SimulatedGpu()) as engine:
        assert engine.remarks == ()
    fused = onnx.load_from_string(module.for_gpu(saved("fp16"))[0]).graph
    operators = [node.op_type for node in fused.node]
    assert operators.count("MultiHeadAttention") == tiny.ARCH.depth
    assert "Softmax" not in operators


def test_attention_that_is_not_fused_is_a_remark(lowered, tmp_path):
    graph.save(lowered("fp16"), tiny.spec(precision="fp16"), tmp_path, "side.onnx", limit=0)
    with Simulated(tmp_path / "side.onnx", SimulatedGpu()) as engine:
        assert engine.remarks == (module.ATTENTION_NOT_FUSED,)
        assert engine.run(tiny.images(1))[0].shape == (1, 12, 6)


def test_attention_that_does_not_run_fused_stays_as_it_is(saved, monkeypatch):
    """For example, older versions have no fused operator for BF16."""

    def only_plain(engine, session):
        if len(opened) == 1:
            raise module.NotOnGpuError("It would run on the CPU.", why="MultiHeadAttention.")

    opened = []
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda *a, **k: opened.append(a[0]) or real(*a, **k)
    )
    monkeypatch.setattr(Simulated, "_check_placement", only_plain)
    path = saved("fp32")
    with Simulated(path, SimulatedGpu()) as engine:
        assert engine.run(tiny.images(1))[0].shape == (1, 12, 6)
        assert engine.remarks[0].endswith("so attention is slower. MultiHeadAttention.")
    assert isinstance(opened[0], bytes)
    assert opened[1] == path


def test_nodes_on_the_cpu_are_an_error(saved, monkeypatch):
    check = OnnxRuntimeGpuEngine._check_placement
    monkeypatch.setattr(Simulated, "_check_placement", check)
    path = saved("fp32")
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        Simulated(path, SimulatedGpu())
    monkeypatch.setattr(module, "CUDA", CPU)
    with pytest.raises(DeviceError, match=r"a part of fp32\.onnx on the CPU") as error:
        Simulated(path, SimulatedGpu())
    assert "Conv" in error.value.why


def test_operators_on_the_cpu_are_found(saved):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(saved("fp32"), options, providers=[CPU])
    found = computed_on_cpu(session)
    assert {"MatMul", "Conv", "LayerNormalization"} <= set(found)
    assert not {"Shape", "Concat", "Expand"} & set(found)


def test_only_recorded_runs_are_not_waited_for(saved):
    """Buffers of the others would never be freed; and no batch size runs twice per call."""
    with Simulated(saved("fp32"), SimulatedGpu()) as engine:
        network = engine._latest
        for count in (1, 1, 1, 2, 1, 2):
            engine.run(tiny.images(count))
        assert network.not_waited == 1
        assert network.waited == 3 + 4  # each of the three shapes of buffers and batch once more
    assert network.waited == 8  # frees the buffers of the recorded run


def test_problems_of_the_gpu_are_not_blamed_on_the_file(saved, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(DeviceError, match=r"cannot open fp32\.onnx on the GPU") as error:
        Simulated(saved("fp32"), SimulatedGpu())
    assert "CUDNN failure" in error.value.why


def test_a_graph_with_more_outputs_is_not_for_this_engine(saved, gpu_machine, tmp_path):
    """`verify --bisect` adds outputs; their shapes are known only after a run."""
    model = onnx.load(saved("fp32"))
    name = model.graph.node[5].output[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    path = tmp_path / "more.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(module.MoreOutputsError):
        Simulated(path, SimulatedGpu())
    with open_onnxruntime(path) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        assert len(engine.run_named(tiny.images(1), [name])) == 1


def test_images_of_another_size(saved):
    gpu = SimulatedGpu()
    with Simulated(saved("fp32"), gpu) as engine:
        wrong = put(gpu, np.zeros((1, 9, 9, 3), np.uint8))
        with pytest.raises(UsageError, match="The engine takes uint8"):
            engine.run_device(wrong)
    with pytest.raises(UsageError, match="closed"):
        engine.run(tiny.images(1))


def test_damaged_files(saved, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(saved("fp32").read_bytes()[:3000])
    with pytest.raises(ModelFileError):
        Simulated(path, SimulatedGpu())
    model = onnx.load(saved("fp32"))
    del model.graph.output[1]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="cannot be opened"):
        Simulated(path, SimulatedGpu())


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_segmenter_keeps_everything_on_the_gpu(exported, tmp_path, image_path, monkeypatch, task):
    monkeypatch.setattr(
        "eomt_deploy.processing.cuda.processor.load_kernels", lambda gpu: Kernels(gpu, twin())
    )
    path = exported(task)
    options = {"confidence": True} if task == "semantic" else {}
    with Segmenter(path, backend="onnxruntime", device="cpu") as host:
        result = host.predict(image_path, **options)
    wanted = label_map(result)
    with Segmenter(Simulated(path, HostDevice(tmp_path))) as segmenter:
        for _ in range(3):
            own = segmenter.predict(image_path, **options)
            assert (label_map(own) == wanted).mean() > 0.999
            if result.confidence is not None:
                np.testing.assert_allclose(own.confidence, result.confidence, atol=1e-4)


# ---- which engine is opened --------------------------------------------------------------------


@pytest.fixture
def gpu_machine(monkeypatch):
    """A machine that lists a GPU and ONNX Runtime's CUDA provider."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    for place in ("open", "engine"):
        monkeypatch.setattr(
            f"eomt_deploy.backends.onnxruntime.{place}.cuda_device_count", lambda: 1
        )


def failing(monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr(module, "OnnxRuntimeGpuEngine", fail)


def test_a_gpu_that_cannot_be_used(saved, monkeypatch, gpu_machine):
    failing(monkeypatch, DeviceError("The driver is too old.", why="It has version 1."))
    with open_onnxruntime(saved("fp32")) as engine:
        assert engine.device == "cpu"
        (remark,) = engine.remarks
        assert remark.endswith("not on the GPU. The driver is too old. It has version 1.")
    with pytest.raises(DeviceError, match="too old"):
        open_onnxruntime(saved("fp32"), device="cuda")


def test_without_cuda_python_everything_is_copied(saved, monkeypatch, gpu_machine):
    failing(monkeypatch, MissingDependencyError("cuda-python is missing.", fix="pip install it"))
    with open_onnxruntime(saved("fp32")) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        assert "which is slow. cuda-python is missing. pip install it" in engine.remarks[-1]


def test_the_cpu_is_used_without_a_gpu_or_if_it_is_requested(saved, gpu_machine):
    with open_engine(saved("fp32"), backend="onnxruntime", device="cpu") as engine:
        assert engine.device == "cpu"
        assert engine.remarks == ()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_real_gpu(saved, precision):
    from host_twin import gpu_device

    gpu_device()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    path = saved(precision)
    wanted = OnnxRuntimeEngine(path, device="cpu").run(tiny.images(3))
    with OnnxRuntimeGpuEngine(path) as engine:
        for _ in range(3):
            found = engine.run(tiny.images(3))
            for have, want in zip(found, wanted, strict=True):
                assert np.abs(have - want).max() < 1e-2 * np.abs(want).max()
        assert engine.cuda_graph == "on"
