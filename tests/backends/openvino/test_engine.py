from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tiny

from eomt_deploy import Segmenter, devices
from eomt_deploy.backends import choose_backend, open_engine, registry
from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.backends.openvino import engine as engine_module
from eomt_deploy.backends.openvino.build import build_openvino
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.backends.openvino.engine import OpenVinoEngine
from eomt_deploy.backends.openvino.graph import normalize_channels_in_place
from eomt_deploy.errors import MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.privacy import import_openvino

openvino = import_openvino()


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
            assert max(errors(path, reference, tiny.images(count))) < 1e-5


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 1e-2), ("bf16", 1e-1), ("int8", 1e-1)])
def test_low_precision_is_near_what_the_graph_says(saved, lowered, precision, allowed):
    found = errors(saved(precision), EmulatedEngine(lowered(precision)), tiny.images(2))
    overflows = precision == "int8" and devices.may_overflow_in_int8()
    assert max(found) < (3 * allowed if overflows else allowed)
    with open_engine(saved(precision), backend="openvino") as engine:
        assert any("VNNI" in remark for remark in engine.remarks) == overflows


def test_fp32_stays_fp32_on_any_chip(saved):
    with open_engine(saved("fp32"), backend="openvino") as engine:
        assert engine.arithmetic == "fp32"
        assert engine._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    with open_engine(saved("bf16"), backend="openvino") as engine:
        able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert engine.arithmetic == ("bf16" if able else "fp32")


def test_int8_computes_the_rest_in_bf16_where_the_cpu_does(
    saved, monkeypatch, cli, picture, tmp_path
):
    for able, arithmetic in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(engine_module, "computes_in_bf16", lambda able=able: able)
        assert engine_module.default_arithmetic("int8") == arithmetic
        assert engine_module.default_arithmetic("fp32") == "fp32"
        assert engine_module.default_arithmetic("fp16") == "fp16"
    path = saved("int8")
    monkeypatch.setattr(engine_module, "computes_in_bf16", lambda: True)
    command = ("predict", path, picture, "-o", tmp_path / "o.json", "--backend", "openvino")
    code, _, err = cli(*command, "--arithmetic", "fp32")
    assert code == 0
    assert "openvino on cpu, computing in int8 and fp32" in err
    able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    _, _, err = cli(*command)
    assert f"computing in int8 and {'bf16' if able else 'fp32'}" in err
    code, _, err = cli(*command, "--arithmetic", "f32")
    assert code == 2
    assert "openvino has no arithmetic 'f32'" in err
    code, _, err = cli(
        "bench", "--engine", path, "--backend", "onnxruntime", "--arithmetic", "fp32"
    )
    assert code == 2
    assert "onnxruntime has no arithmetic" in err


def test_bf16_flags_of_processors(monkeypatch):
    for flags, able in ((["avx2"], False), (["avx512f", "avx512_bf16"], True), ([], False),
                        (["amx_bf16", "amx_int8"], True)):  # fmt: skip
        monkeypatch.setattr(devices, "cpu_flags", lambda flags=flags: flags)
        assert devices.computes_in_bf16() == able


def test_what_openvino_saves_keeps_its_description(saved, tmp_path, image_path):
    path = saved("fp32")
    converted = tmp_path / "m.xml"
    openvino.save_model(openvino.Core().read_model(path), converted, compress_to_fp16=False)
    with open_engine(path, backend="onnxruntime") as reference, open_engine(converted) as engine:
        assert engine.backend == "openvino"
        assert engine.spec == reference.spec
        images = tiny.images(2)
        for have, want in zip(engine.run(images), reference.run(images), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
    with Segmenter(converted) as segmenter:
        assert segmenter.predict(image_path).size == (400, 600)


def test_threads_share_an_engine(saved):
    images = tiny.images(4)
    with open_engine(saved("fp32"), backend="openvino") as engine:
        wanted = [engine.run(images[i : i + 1]) for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            order = [0, 1, 2, 3] * 8
            found = list(pool.map(lambda i: engine.run(images[i : i + 1]), order))
    for index, (classes, masks) in zip(order, found, strict=True):
        np.testing.assert_array_equal(classes, wanted[index][0])
        np.testing.assert_array_equal(masks, wanted[index][1])


def test_results_belong_to_the_caller(saved):
    images = tiny.images(2)
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
    with pytest.raises(ModelFileError, match=r"OpenVINO .* cannot read"):
        open_engine(damaged, backend="openvino")
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ModelFileError, match="not written by eomt-deploy"):
        open_engine(tmp_path / "foreign.onnx", backend="openvino")
    with pytest.raises(UsageError, match="does not run on the device 'cuda'"):
        open_engine(path, backend="openvino", device="cuda")
    engine = open_engine(path, backend="openvino")
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run(tiny.images(1))


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
        with pytest.raises(MissingDependencyError, match="needs onnxruntime"):
            choose_backend(path, None, "cuda")
    absent = {n: replace(b, package="not_here") for n, b in registry.BACKENDS.items()}
    with monkeypatch.context() as patch:
        patch.setattr(registry, "BACKENDS", absent)
        with pytest.raises(MissingDependencyError, match=r"onnxruntime(.|\n)*eomt-deploy\[cpu\]"):
            choose_backend(path, None)
        _, out, err = cli("doctor")  # reports it without failing
        assert "run .onnx" in out, err
        assert "chosen by itself" not in out
    monkeypatch.setattr(registry, "package_version", lambda name: "1.30")  # onnxruntime-gpu is here
    assert choose_backend(path, None) == "onnxruntime"
    assert choose_backend(path, None, "cpu") == "openvino"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose_backend(path, None, "cpu") == "onnxruntime"


@pytest.mark.parametrize("batch", [None, 2])
def test_throughput_gives_the_same(saved, batch):
    path, images = saved("fp32", batch), tiny.images(5)
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
    path, images = saved(precision), tiny.images(2)
    model = openvino.Core().read_model(path)
    assert normalize_channels_in_place(model) == tiny.spec().num_upscale
    assert normalize_channels_in_place(model) == 0
    plain = OpenVinoEngine(path, reshape=False, arithmetic="fp32")
    changed = OpenVinoEngine(path, arithmetic="fp32")
    with plain, changed:
        for have, want in zip(changed.run(images), plain.run(images), strict=True):
            assert np.abs(have - want).max() < (1e-5 if precision == "fp32" else 2e-2)


def test_an_arithmetic_that_is_not_there_is_a_remark(saved, monkeypatch, cli, picture, tmp_path):
    monkeypatch.setattr(engine_module, "able", lambda core: ["fp32"])
    with OpenVinoEngine(saved("fp32"), threads=1, arithmetic="bf16") as engine:
        (remark,) = engine.remarks
    assert "compute in bf16, which this CPU does not support" in remark
    path = tmp_path / "m.xml"
    build_openvino(OpenVinoConfig(saved("fp32"), path, arithmetic="fp32"))
    path.write_text(path.read_text().replace('arithmetic value="fp32"', 'arithmetic value="bf16"'))
    code, _, err = cli("predict", path, picture, "-o", tmp_path / "o.json")
    assert code == 0
    assert f"warning: {remark}" in err
    assert json.loads(cli("inspect", path, "--json")[1])["remarks"] == [remark]
    assert "remarks" in cli("inspect", path)[1]


def test_closing_right_after_a_run_never_ends_the_process(saved, tmp_path):
    """OpenVINO's own queue crashed in one of its threads, in about one of 100 runs."""
    program = (
        "import sys, numpy as np\n"  # no PyTorch, which takes longer than the runs
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "from pathlib import Path\n"
        "images = np.load(sys.argv[2])\n"
        "for _ in range(40):\n"
        "    with OpenVinoEngine(Path(sys.argv[1]), threads=1, mode='throughput') as engine:\n"
        "        engine.run(images)\n"
    )
    np.save(tmp_path / "images.npy", tiny.images(2))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, saved("fp32"), tmp_path / "images.npy"]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO has signal stacks only there")
def test_a_signal_after_closing_in_any_order_and_thread(saved):
    """OpenVINO restores the signal stack of a thread only in the reverse order, in that thread."""
    program = (
        "import signal, sys, threading\n"
        "from pathlib import Path\n"
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "opened = [OpenVinoEngine(Path(sys.argv[1]), threads=1) for _ in range(3)]\n"
        "close = lambda: opened.pop(0).close()\n"
        "close()\n"
        "thread = threading.Thread(target=close)\n"
        "thread.start()\n"
        "thread.join()\n"
        "close()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, saved("fp32")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
