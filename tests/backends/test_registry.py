from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import onnxruntime as ort
import pytest
from test_sidecar import SIDECAR

from eomt_deploy import Segmenter
from eomt_deploy.backends import BACKENDS, open_engine, registry
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.sidecar import write_sidecar


def test_engine_runs_on_the_cpu_and_says_so(exported):
    path = exported("panoptic")
    with open_engine(path, backend="onnxruntime", device="cpu", threads=1) as engine:
        assert engine.where == "onnxruntime on cpu"
        assert (engine.backend, engine.device) == ("onnxruntime", "cpu")
        class_logits, mask_logits = engine.run(np.zeros((2, 64, 64, 3), np.uint8))
    assert class_logits.shape == (2, 12, 6)
    assert mask_logits.shape == (2, 12, 16, 16)
    assert class_logits.dtype == mask_logits.dtype == np.float32


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_gpu_that_is_not_there_is_an_error_not_a_fallback(exported, monkeypatch):
    path = exported("panoptic")
    with pytest.raises(DeviceError):
        open_engine(path, device="cuda")
    # onnxruntime-gpu lists its provider on any machine, and falls back to the CPU silently.
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        open_engine(path, device="cuda")
    with open_engine(path) as engine:
        assert engine.device == "cpu"


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
)
def test_wrong_inputs(exported, images):
    with open_engine(exported("panoptic")) as engine, pytest.raises(UsageError):
        engine.run(images)


def test_closed_engine(exported):
    engine = open_engine(exported("panoptic"))
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8))


def test_files_that_cannot_be_opened(tmp_path, exported):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported("panoptic").read_bytes()[:1000])
    for path, backend, word in (
        (broken, "onnxruntime", "cannot be opened by ONNX Runtime"),
        (broken, "openvino", "damaged, or it is not an ONNX file"),
        (tmp_path / "none.onnx", None, "no model at"),
        (tmp_path / "model.plan", None, r"\.plan"),
    ):
        with pytest.raises(ModelFileError, match=word):
            open_engine(path, backend=backend)


def test_wrong_choices(exported):
    path = exported("panoptic")
    for options, word in (
        ({"backend": "caffe"}, "caffe"),
        ({"device": "tpu"}, "tpu"),
        ({"threads": 0}, "`threads` must be at least 1, got 0"),
    ):
        with pytest.raises(UsageError, match=word):
            open_engine(path, **options)


def test_wrong_precision_is_reported_before_the_library_is_called(exported, tmp_path):
    with open_engine(exported("panoptic"), precision="fp32") as engine:
        assert engine.spec.precision == "fp32"
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    write_sidecar(engine, dataclasses.replace(SIDECAR, target="tensorrt-rtx"))
    for path, found in ((exported("panoptic"), "fp32"), (engine, "fp16")):
        with pytest.raises(UsageError, match=f"int8 was requested, but .* in {found}") as error:
            open_engine(path, precision="int8")
        assert "--precision int8" in error.value.fix


def test_engine_of_an_unknown_library(tmp_path):
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    for target in ("foo", "onnxruntime"):
        write_sidecar(engine, dataclasses.replace(SIDECAR, target=target))
        with pytest.raises(ModelFileError, match=f"built for '{target}'"):
            open_engine(engine)


def test_missing_run_time_names_the_command(exported, monkeypatch):
    gone = dataclasses.replace(BACKENDS["onnxruntime"], package="a_package_that_is_not_here")
    monkeypatch.setattr(registry, "BACKENDS", {"onnxruntime": gone})
    with pytest.raises(MissingDependencyError, match=r"eomt-deploy\[cpu\]"):
        open_engine(exported("panoptic"))


@pytest.mark.gpu
@pytest.mark.skipif(
    cuda_device_count() == 0 or "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs an NVIDIA GPU and onnxruntime-gpu",
)
def test_gpu_gives_the_same_numbers(exported):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with open_engine(exported("panoptic"), device="cpu") as engine:
        wanted = engine.run(images)
    with open_engine(exported("panoptic"), device="cuda") as engine:
        assert engine.device == "cuda"
        for have, want in zip(engine.run(images), wanted, strict=True):
            assert np.abs(have - want).max() < 2e-3 * np.abs(want).max()  # TF32


def test_an_open_model_is_not_sent_to_another_process(exported):
    """Arguments of a spawned process are pickled."""
    with Segmenter(exported("panoptic")) as segmenter:
        for send in (pickle.dumps, copy.deepcopy):
            with pytest.raises(UsageError, match="sent to another process"):
                send(segmenter)
