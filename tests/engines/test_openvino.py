from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import openvino
import pytest
import tiny

from eomt_deploy import Segmenter
from eomt_deploy.engines import choose_backend, open_engine, registry
from eomt_deploy.engines.emulation import EmulatedEngine
from eomt_deploy.engines.openvino import OpenVinoEngine
from eomt_deploy.engines.openvino_graph import normalize_channels_in_place
from eomt_deploy.errors import ArtifactError, MissingDependencyError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "eomt-deploy" / "openvino"


def errors(path, reference, images):
    with open_engine(path, backend="openvino") as engine:
        found = engine.run(images)
    wanted = reference.run(images)
    return [
        float(np.abs(have - want).max() / np.abs(want).max())
        for have, want in zip(found, wanted, strict=True)
    ]


@pytest.mark.parametrize("batch", [None, 2])
def test_fp32_is_what_onnx_runtime_gives(saved, batch):
    path = saved("fp32", batch)
    with open_engine(path, backend="onnxruntime") as reference:
        for count in (1, 2, 3):
            assert max(errors(path, reference, tiny.photos(count))) < 1e-5


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 1e-2), ("bf16", 1e-1), ("int8", 1e-1)])
def test_low_precision_is_near_what_the_graph_says(saved, lowered, precision, allowed):
    found = errors(saved(precision), EmulatedEngine(lowered(precision)), tiny.photos(2))
    assert max(found) < allowed


def test_fp32_stays_fp32_on_any_chip(saved):
    with open_engine(saved("fp32"), backend="openvino") as engine:
        assert engine.arithmetic == "f32"
        assert engine._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    with open_engine(saved("bf16"), backend="openvino") as engine:
        able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert engine.arithmetic == ("bf16" if able else "f32")


def test_what_openvino_saves_keeps_its_description(saved, tmp_path, photo):
    path = saved("fp32")
    converted = tmp_path / "m.xml"
    openvino.save_model(openvino.Core().read_model(path), converted, compress_to_fp16=False)
    with open_engine(path, backend="onnxruntime") as reference, open_engine(converted) as engine:
        assert engine.backend == "openvino"
        assert engine.spec == reference.spec
        images = tiny.photos(2)
        for have, want in zip(engine.run(images), reference.run(images), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
    with Segmenter(converted) as segmenter:
        assert segmenter.predict(photo).size == (400, 600)


def test_the_compiled_model_is_kept(saved, cache):
    path = saved("fp32")
    loaded = []
    for _ in range(2):
        with open_engine(path, backend="openvino", threads=1) as engine:
            loaded.append(engine._compiled.get_property("LOADED_FROM_CACHE"))
    assert loaded == [False, True]
    assert any(file.is_file() for file in cache.rglob("*"))


def test_threads_share_an_engine(saved):
    images = tiny.photos(4)
    with open_engine(saved("fp32"), backend="openvino") as engine:
        wanted = [engine.run(images[i : i + 1]) for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            order = [0, 1, 2, 3] * 8
            found = list(pool.map(lambda i: engine.run(images[i : i + 1]), order))
    for index, (classes, masks) in zip(order, found, strict=True):
        np.testing.assert_array_equal(classes, wanted[index][0])
        np.testing.assert_array_equal(masks, wanted[index][1])


def test_results_belong_to_the_caller(saved):
    images = tiny.photos(2)
    with open_engine(saved("fp32"), backend="openvino") as engine:
        first = engine.run(images[:1])
        copies = [array.copy() for array in first]
        engine.run(images[1:])
    for array, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_wrong_files_and_uses(saved, tmp_path):
    path = saved("fp32")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="cannot be read by OpenVINO"):
        open_engine(damaged, backend="openvino")
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match="not written by eomt-deploy"):
        open_engine(tmp_path / "foreign.onnx", backend="openvino")
    with pytest.raises(UsageError, match="no device 'cuda'"):
        open_engine(path, backend="openvino", device="cuda")
    engine = open_engine(path, backend="openvino")
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run(tiny.photos(1))


def test_a_cache_that_cannot_be_written_costs_only_time(saved, cache):
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file, not a folder")
    with open_engine(saved("fp32"), backend="openvino") as engine:
        assert np.isfinite(engine.run(tiny.photos(1))[0]).all()


def test_it_is_chosen_on_x86_cpus(saved, monkeypatch, cli):
    path = saved("fp32")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert choose_backend(path, None) == "openvino"
    assert choose_backend(path, None, "cpu") == "openvino"
    assert choose_backend(path, None, "cuda") == "onnxruntime"
    assert choose_backend(path, "onnxruntime") == "onnxruntime"
    gone = replace(registry.BACKENDS["onnxruntime"], package="a_package_that_is_not_here")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "BACKENDS", {**registry.BACKENDS, "onnxruntime": gone})
        assert choose_backend(path, None) == "openvino"
        with pytest.raises(MissingDependencyError, match="onnxruntime is missing"):
            choose_backend(path, None, "cuda")
    absent = {n: replace(b, package="not_here") for n, b in registry.BACKENDS.items()}
    with monkeypatch.context() as patch:
        patch.setattr(registry, "BACKENDS", absent)
        with pytest.raises(MissingDependencyError, match=r"onnxruntime(.|\n)*eomt-deploy\[cpu\]"):
            choose_backend(path, None)
        _, out, err = cli("doctor")  # says so, and does not end there
        assert "run .onnx" in out, err
        assert "chosen by itself" not in out
    monkeypatch.setattr(registry, "package_version", lambda name: "1.30")  # onnxruntime-gpu is here
    assert choose_backend(path, None) == "onnxruntime"
    assert choose_backend(path, None, "cpu") == "openvino"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose_backend(path, None, "cpu") == "onnxruntime"


@pytest.mark.parametrize("batch", [None, 2])
def test_throughput_gives_the_same(saved, batch):
    path, images = saved("fp32", batch), tiny.photos(5)
    with open_engine(path, backend="openvino") as engine:
        wanted = engine.run(images)
    with open_engine(path, backend="openvino", mode="throughput", threads=2) as engine:
        assert str(engine._compiled.get_property("PERFORMANCE_HINT")).endswith("THROUGHPUT")
        for _ in range(2):
            for have, want in zip(engine.run(images), wanted, strict=True):
                np.testing.assert_allclose(have, want, atol=1e-4)
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(engine.run, [images] * 6):
                np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)


def test_modes_of_others(saved):
    with pytest.raises(UsageError, match="onnxruntime has no mode 'throughput'"):
        open_engine(saved("fp32"), backend="onnxruntime", mode="throughput")
    with pytest.raises(UsageError, match=r"no mode 'fast'(.|\n)*latency or throughput"):
        open_engine(saved("fp32"), backend="openvino", mode="fast")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_reshaped_graph_computes_the_same(saved, precision):
    path, images = saved(precision), tiny.photos(2)
    model = openvino.Core().read_model(path)
    assert normalize_channels_in_place(model) == tiny.spec().num_upscale
    assert normalize_channels_in_place(model) == 0
    plain = OpenVinoEngine(path, reshape=False, arithmetic="f32")
    changed = OpenVinoEngine(path, arithmetic="f32")
    with plain, changed:
        for have, want in zip(changed.run(images), plain.run(images), strict=True):
            assert np.abs(have - want).max() < (1e-5 if precision == "fp32" else 2e-2)
