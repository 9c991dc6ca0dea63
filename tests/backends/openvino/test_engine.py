from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

from eomt_deploy import Segmenter, devices
from eomt_deploy.backends import choose_backend, open_engine, registry
from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.backends.openvino import cache as openvino_cache
from eomt_deploy.backends.openvino import engine as engine_module
from eomt_deploy.backends.openvino.build import build_openvino
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.backends.openvino.engine import OpenVinoEngine
from eomt_deploy.backends.openvino.graph import normalize_channels_in_place
from eomt_deploy.errors import ArtifactError, MissingDependencyError, UsageError
from eomt_deploy.privacy import import_openvino

openvino = import_openvino()


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
    overflows = precision == "int8" and devices.may_overflow_in_int8()
    assert max(found) < (3 * allowed if overflows else allowed)
    with open_engine(saved(precision), backend="openvino") as engine:
        assert any("VNNI" in remark for remark in engine.remarks) == overflows


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
            loaded.append(engine.from_cache)
            assert engine.remarks == ()
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
        assert "Each start compiles the model again" in engine.remarks[0]


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


def start(path, **options):
    """Outputs, whether they came from the cache, and remarks of one start."""
    with OpenVinoEngine(path, threads=1, **options) as engine:
        return engine.run(tiny.photos(2)), engine.from_cache, engine.remarks


def flip(path, count=16):
    """Change some bytes in the middle, where the weights are."""
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + count] = bytes(byte ^ 0x7F for byte in content[start : start + count])
    path.write_bytes(content)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_second_start_computes_the_very_same(saved, precision, mode):
    first, second = (start(saved(precision), mode=mode) for _ in range(2))
    assert (first[1], second[1]) == (False, True)
    for have, want in zip(second[0], first[0], strict=True):
        np.testing.assert_array_equal(have, want)


DAMAGES = {
    "flipped bytes": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "only a header": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "foreign": lambda path: path.write_bytes(b"something else" * 100),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_never_decides_a_result(saved, cache, damage):
    path = saved("fp32")
    wanted, *_ = start(path)
    (kept,) = cache.iterdir()
    DAMAGES[damage](kept)
    found, from_cache, remarks = start(path)
    for have, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(have, want)
    assert not from_cache
    assert "was damaged. It was compiled again" in remarks[0]
    if damage != "a folder":  # which is not ours to remove
        assert start(path)[1:] == (True, ())


def test_a_compiled_model_of_another_file_is_not_used(saved, cache):
    """Its hash is right, its name is not."""
    path, other = saved("fp32"), saved("fp16")
    wanted, *_ = start(path)
    (own,) = cache.iterdir()
    start(other)
    (foreign,) = set(cache.iterdir()) - {own}
    own.write_bytes(foreign.read_bytes())
    found, from_cache, _ = start(path)
    assert not from_cache
    np.testing.assert_array_equal(found[1], wanted[1])


def test_everything_that_decides_a_result_has_a_file_of_its_own(saved, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(saved("fp32").read_bytes())

    def name(threads=1, reshape=True, arithmetic="f32"):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": arithmetic}
        return openvino_cache.CompiledFile(openvino.Core(), path, settings, reshape).path.name

    names = [name(), name(threads=2), name(reshape=False), name(arithmetic="bf16")]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    names.append(name())
    monkeypatch.setattr(openvino, "__version__", "2099.1")
    names.append(name())
    monkeypatch.setattr("eomt_deploy.devices.cpu_flags", lambda: ["sve"])
    names.append(name())
    # As long as before and of the same time: only the content differs.
    facts = path.stat()
    flip(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    names.append(name())
    assert len(set(names)) == len(names)
    assert name() == names[-1]


def test_a_model_that_changes_meanwhile_is_not_kept(saved, cache, tmp_path, monkeypatch):
    path, other = tmp_path / "m.onnx", saved("fp16")
    path.write_bytes(saved("fp32").read_bytes())
    read = engine_module.read_model

    def exported_again(core, path):
        path.write_bytes(other.read_bytes())
        return read(core, path)

    monkeypatch.setattr(engine_module, "read_model", exported_again)
    start(path)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_two_processes_start_at_once(saved, cache):
    path = saved("fp32")
    program = (
        "import sys, tiny\n"
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "from pathlib import Path\n"
        "for _ in range(4):\n"
        "    with OpenVinoEngine(Path(sys.argv[1]), threads=1) as engine:\n"
        "        classes, masks = engine.run(tiny.photos(2))\n"
        "        print(engine.from_cache, engine.remarks, classes.sum(), masks.sum())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [line.split(" ", 1) for one in running for line in one.communicate()[0].splitlines()]
    assert len(lines) == 8
    assert len({rest for _, rest in lines}) == 1  # the same sums, and no remark
    assert [first for first, _ in lines].count("True") >= 6
    assert len(list(cache.iterdir())) == 1


def test_what_the_compiled_model_needs_lives_as_long_as_its_requests(saved):
    path, images = saved("fp32"), tiny.photos(1)
    start(path)
    engine = OpenVinoEngine(path, threads=1)
    wanted = engine.run(images)
    request = engine._own.request
    engine.close()
    del engine
    gc.collect()
    found = request.infer({"images": images})
    np.testing.assert_array_equal(found["mask_logits"], wanted[1])


def test_a_cache_that_is_too_small_is_a_remark(saved, cache, monkeypatch):
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "1000")
    _, from_cache, remarks = start(saved("fp32"))
    assert not from_cache
    assert "Each start compiles the model again" in remarks[0]
    assert not cache.exists() or list(cache.iterdir()) == []
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "0")  # the user wants none
    assert start(saved("fp32"))[1:] == (False, ())
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "much")
    with pytest.raises(UsageError, match="not a size"):
        start(saved("fp32"))


def test_a_user_without_a_home_folder(saved, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    _, from_cache, remarks = start(saved("fp32"))
    assert not from_cache
    assert "the user has no home folder" in remarks[0]


def test_an_arithmetic_that_is_not_there_is_a_remark(saved, monkeypatch, cli, picture, tmp_path):
    monkeypatch.setattr(engine_module, "able", lambda core: ["f32"])
    (remark,) = start(saved("fp32"), arithmetic="bf16")[2]
    assert "compute in bf16, which this CPU does not do" in remark
    path = tmp_path / "m.xml"
    build_openvino(OpenVinoConfig(saved("fp32"), path, arithmetic="f32"))
    path.write_text(path.read_text().replace('arithmetic value="f32"', 'arithmetic value="bf16"'))
    code, _, err = cli("predict", path, picture, "-o", tmp_path / "o.json")
    assert code == 0
    assert f"warning: {remark}" in err
    assert json.loads(cli("inspect", path, "--json")[1])["remarks"] == [remark]
    assert "remarks" in cli("inspect", path)[1]


def test_closing_right_after_a_run_never_ends_the_process(saved):
    """OpenVINO's own queue did, in one of its threads, in about one of 100 times."""
    program = (
        "import sys, tiny\n"
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "from pathlib import Path\n"
        "for _ in range(100):\n"
        "    with OpenVinoEngine(Path(sys.argv[1]), threads=1, mode='throughput') as engine:\n"
        "        engine.run(tiny.photos(2))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(saved("fp32"))]
    subprocess.run(command, env=environment, check=True)


def test_a_full_disk_costs_only_time(saved, cache):
    pytest.importorskip("resource")
    program = (
        "import resource, sys\n"
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "with OpenVinoEngine(Path(sys.argv[1]), threads=1) as engine:\n"
        "    print(engine.remarks[0])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(saved("fp32"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Each start compiles the model again" in done.stdout
    assert "File too large" in done.stdout
    assert list(cache.iterdir()) == []
