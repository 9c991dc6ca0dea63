"""Compiled models are cached, and the cache never changes a result."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.openvino import cache as openvino_cache
from eomt_deploy.backends.openvino import engine as engine_module
from eomt_deploy.backends.openvino.engine import OpenVinoEngine
from eomt_deploy.errors import UsageError
from eomt_deploy.privacy import import_openvino

openvino = import_openvino()


def test_the_compiled_model_is_kept(saved, cache):
    path = saved("fp32")
    loaded = []
    for _ in range(2):
        with open_engine(path, backend="openvino", threads=1) as engine:
            loaded.append(engine.from_cache)
            assert engine.remarks == ()
    assert loaded == [False, True]
    assert any(file.is_file() for file in cache.rglob("*"))


def test_a_cache_that_cannot_be_written_costs_only_time(saved, cache):
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file, not a folder")
    with open_engine(saved("fp32"), backend="openvino") as engine:
        assert np.isfinite(engine.run(tiny.images(1))[0]).all()
        assert "The model is compiled again at each start" in engine.remarks[0]


def start(path, **options):
    """Start an engine once: outputs, whether it came from the cache, and remarks."""
    with OpenVinoEngine(path, threads=1, **options) as engine:
        return engine.run(tiny.images(2)), engine.from_cache, engine.remarks


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
    assert "was damaged, so the model was compiled again" in remarks[0]
    if damage != "a folder":  # a folder is not removed
        assert start(path)[1:] == (True, ())


def test_a_compiled_model_of_another_file_is_not_used(saved, cache):
    """The hash is right, but the name belongs to another model."""
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

    def name(threads=1, reshape=True, arithmetic="fp32"):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": arithmetic}
        return openvino_cache.CompiledFile(openvino.Core(), path, settings, reshape).path.name

    names = [name(), name(threads=2), name(reshape=False), name(arithmetic="bf16")]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    names.append(name())
    monkeypatch.setattr(openvino, "__version__", "2099.1")
    names.append(name())
    monkeypatch.setattr("eomt_deploy.devices.cpu_flags", lambda: ["sve"])
    names.append(name())
    # The size and the modification time stay the same: only the content differs.
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


def test_two_processes_start_at_once(saved, cache, tmp_path):
    path = saved("fp32")
    program = (
        "import sys, numpy as np\n"  # no PyTorch, which takes longer than the runs
        "from eomt_deploy.backends.openvino.engine import OpenVinoEngine\n"
        "from pathlib import Path\n"
        "images = np.load(sys.argv[2])\n"
        "for _ in range(4):\n"
        "    with OpenVinoEngine(Path(sys.argv[1]), threads=1) as engine:\n"
        "        classes, masks = engine.run(images)\n"
        "        print(engine.from_cache, engine.remarks, classes.sum(), masks.sum())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    np.save(tmp_path / "images.npy", tiny.images(2))
    command = [sys.executable, "-c", program, path, tmp_path / "images.npy"]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [line.split(" ", 1) for one in running for line in one.communicate()[0].splitlines()]
    assert len(lines) == 8
    assert len({rest for _, rest in lines}) == 1  # the same sums, and no remark
    assert [first for first, _ in lines].count("True") >= 6
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_is_too_small_is_a_remark(saved, cache, monkeypatch):
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "1000")
    _, from_cache, remarks = start(saved("fp32"))
    assert not from_cache
    assert "The model is compiled again at each start" in remarks[0]
    assert not cache.exists() or list(cache.iterdir()) == []
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "0")  # disabled by the user
    assert start(saved("fp32"))[1:] == (False, ())
    monkeypatch.setenv("EOMT_DEPLOY_CACHE_LIMIT", "much")
    with pytest.raises(UsageError, match="not a size"):
        start(saved("fp32"))


def test_a_user_without_a_home_folder(saved, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without a home folder
    _, from_cache, remarks = start(saved("fp32"))
    assert not from_cache
    assert "the user has no home folder" in remarks[0]


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
    assert "The model is compiled again at each start" in done.stdout
    assert "File too large" in done.stdout
    assert list(cache.iterdir()) == []


def test_what_the_compiled_model_needs_lives_as_long_as_its_requests(saved):
    path, images = saved("fp32"), tiny.images(1)
    start(path)
    engine = OpenVinoEngine(path, threads=1)
    wanted = engine.run(images)
    request = engine._own.request
    engine.close()
    del engine
    gc.collect()
    found = request.infer({"images": images})
    np.testing.assert_array_equal(found["mask_logits"], wanted[1])
