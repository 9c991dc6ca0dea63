"""ExecuTorch programs: build, engine, and errors for files that do not fit."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from filelock import FileLock
from support_page import check

from eomt_deploy import Segmenter
from eomt_deploy.backends import open_engine
from eomt_deploy.backends.backend import load
from eomt_deploy.backends.executorch import engine as running
from eomt_deploy.backends.executorch.build import build_executorch
from eomt_deploy.backends.executorch.built import ExecuTorchFile
from eomt_deploy.backends.executorch.config import ExecuTorchConfig
from eomt_deploy.backends.inspection import Inspection
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.batch.settings import read_spec
from eomt_deploy.certificate import UNCHECKED
from eomt_deploy.errors import DeviceError, MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.outputs import is_ours
from eomt_deploy.sidecar import read_sidecar, sha256, sidecar_path, write_sidecar

pytestmark = pytest.mark.external

pytest.importorskip("executorch", reason="ExecuTorch is not installed (extra executorch).")
SCENES = sorted((Path(__file__).parents[3] / "examples" / "scenes").glob("*.png"))


@pytest.fixture(scope="module")
def built(common):
    """The model and the program of the support matrix's cell, which is compared with its page.

    A build takes long, so all tests share this one, in all test workers.
    """
    folder = common / "executorch"
    kept = folder / "report.pickle"

    def keep(config, progress):
        report = build_executorch(config, progress)
        kept.write_bytes(pickle.dumps(report))
        return report

    with FileLock(common / "executorch.lock"), pytest.MonkeyPatch.context() as patch:
        if not kept.exists():
            folder.mkdir(exist_ok=True)
            where = "eomt_deploy.support.trial.TemporaryDirectory"
            patch.setattr(where, lambda: nullcontext(folder))
            patch.setattr("eomt_deploy.backends.executorch.build.build_executorch", keep)
            check(["executorch"], "DINOv2", "fp32")
    (onnx,) = folder.glob("*.onnx")
    return onnx, pickle.loads(kept.read_bytes())


@pytest.fixture(scope="module")
def model(built):
    return built[0]


@pytest.fixture(scope="module")
def program(built):
    """The report of the build; tests must not change its files."""
    return built[1]


@pytest.fixture
def copy(program, tmp_path):
    """A copy of the program and its description."""
    copies = [tmp_path / file.name.replace("built", "m") for file in program.files]
    for file, copied in zip(program.files, copies, strict=True):
        copied.write_bytes(file.read_bytes())
    return copies[0]


def test_it_computes_what_the_graph_says(model, program):
    with (
        open_engine(model, backend="onnxruntime") as one,
        open_engine(program.files[0], threads=1) as two,
    ):
        assert two.where == "executorch on cpu"
        assert two.spec == replace(one.spec, batch=1)
        assert two.remarks == ()  # it has a certificate
        images = tiny.images(3)  # three calls of the fixed batch
        for have, want in zip(two.run(images), one.run(images), strict=True):
            assert have.dtype == np.float32
            assert have.shape == want.shape
            assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()


def test_label_maps_are_those_of_onnxruntime(model, program):
    with (
        Segmenter(model, backend="onnxruntime") as one,
        Segmenter(program.files[0]) as two,
    ):
        for scene in SCENES:
            want, have = one.predict(scene), two.predict(scene)
            np.testing.assert_array_equal(have.labels, want.labels)
            assert len(have) == len(want)


def test_the_delegate_runs_all_but_the_cast(program):
    assert program.delegate_calls == 1
    assert program.outside == {"to_dim_order_copy": 1}  # uint8 to float32


@pytest.mark.slow  # a build takes 10 s
def test_a_batch_in_one_call_from_the_command_line(exported, tmp_path, cli):
    output = tmp_path / "m.pte"
    onnx = exported("semantic")
    code, out, err = cli("build", onnx, "-o", output, "--fixed-batch", 2, "--no-check")
    assert code == 0, err
    assert "1 call of XNNPACK, 1 operator outside (1 to_dim_order_copy)" in out
    images = tiny.images(3)
    with open_engine(onnx, backend="onnxruntime") as one, open_engine(output) as two:
        assert two.spec.batch == 2
        assert two.remarks  # without a certificate
        for have, want in zip(two.run(images), one.run(images), strict=True):
            assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.slow
def test_the_graph_as_it_was_exported(exported, tmp_path):
    """What `benchmarks/executorch_delegate.py` compares with."""
    config = ExecuTorchConfig(exported("panoptic"), tmp_path / "m.pte", check=False, rewrite=False)
    report = build_executorch(config)
    assert report.delegate_calls > 10
    assert report.outside["native_layer_norm"] == 9


@pytest.mark.slow
def test_coreml_programs_are_built_but_not_run(exported, tmp_path):
    pytest.importorskip("coremltools.libmodelpackage", reason="CoreML's compiler is missing.")
    output = tmp_path / "m.pte"
    report = build_executorch(ExecuTorchConfig(exported("panoptic"), output, partitioner="coreml"))
    assert (report.delegate_calls, report.outside) == (1, {"to_dim_order_copy": 1})
    assert report.certificate is None
    assert UNCHECKED in report.warnings
    if sys.platform != "darwin":
        with pytest.raises(DeviceError, match="built for CoreML"):
            open_engine(output)


def test_results_stay_after_the_next_call_and_threads_share_an_engine(program):
    images = tiny.images(4)
    with open_engine(program.files[0]) as engine:
        wanted = [engine.run(images[i : i + 1]) for i in range(4)]
        assert not np.array_equal(wanted[0][1], wanted[1][1])
        found: list = [None] * 4

        def run(index: int) -> None:
            for _ in range(5):
                found[index] = engine.run(images[index : index + 1])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for have, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(have[1], want[1])


def test_number_of_threads(program):
    from executorch.extension.pybindings import portable_lib

    for threads in (1, 2):
        with open_engine(program.files[0], threads=threads) as engine:
            engine.run(tiny.images(1))
            assert portable_lib._threadpool_get_thread_count() == threads


def test_the_threads_do_not_change_below_an_open_program(program, capfd):
    """ExecuTorch would crash: open programs keep a pointer to the pool of threads."""
    path, images = program.files[0], tiny.images(1)
    with open_engine(path, threads=2) as one:
        wanted = one.run(images)
        with pytest.raises(UsageError, match="cannot use 1 threads: a program with 2 threads"):
            open_engine(path, threads=1)
        with open_engine(path, threads=2) as two, open_engine(path) as three:
            for engine in (one, two, three):
                np.testing.assert_array_equal(engine.run(images)[1], wanted[1])
    with open_engine(path, threads=1) as one:
        one.run(images)
    with pytest.raises(UsageError, match="1 to 256 threads"):
        open_engine(path, threads=257)
    assert capfd.readouterr() == ("", "")


def test_inspect_and_certificate(program, copy):
    found: Inspection = load(BACKENDS["executorch"].inspect)(copy)
    assert "XNNPACK, calls per inference: 1, operators outside: 1" in found.rows["delegate"]
    assert json.loads(json.dumps(found.data))["settings"]["delegate_calls"] == "1"
    assert is_ours(copy)
    assert read_spec(copy).batch == 1
    file = ExecuTorchFile(copy)
    assert file.certificate == program.certificate
    assert file.files == (copy, sidecar_path(copy))
    config = file.rebuild(Path("x.onnx"), Path("y.pte"), None)
    assert (config.fixed_batch, config.partitioner, config.check) == (1, "xnnpack", False)


def test_a_failed_build_leaves_the_old_files(exported, copy, monkeypatch):
    before = [copy.read_bytes(), sidecar_path(copy).read_bytes()]
    monkeypatch.setattr("eomt_deploy.backends.executorch.build.REFUSED", {})
    monkeypatch.setattr("executorch.exir.to_edge_transform_and_lower", lambda *_, **__: 1 / 0)
    with pytest.raises(Exception, match="division by zero") as raised:
        build_executorch(ExecuTorchConfig(exported("panoptic"), copy))
    assert raised.value.id == "E303"
    assert [copy.read_bytes(), sidecar_path(copy).read_bytes()] == before


def test_damaged_programs(copy):
    content = copy.read_bytes()
    middle = len(content) // 2
    for changed in (content[:-1], content[:middle] + b"\xff" + content[middle + 1 :], b""):
        copy.write_bytes(changed)
        with pytest.raises(ModelFileError):
            open_engine(copy)
    copy.write_bytes(content)
    sidecar_path(copy).unlink()
    with pytest.raises(ModelFileError, match="has no description"):
        open_engine(copy)


def test_another_program_format(copy):
    """A file whose description fits, but which ExecuTorch refuses."""
    facts = read_sidecar(copy)
    content = bytearray(copy.read_bytes())
    assert content[4:6] == b"ET"
    content[4:8] = b"ET99"
    copy.write_bytes(content)
    write_sidecar(copy, replace(facts, plan_sha256=sha256(copy)))
    with pytest.raises(ModelFileError, match="cannot open"):
        open_engine(copy)


def test_another_version_target_or_delegate(copy):
    facts = read_sidecar(copy)
    write_sidecar(copy, replace(facts, library_version="99.0.0"))
    with pytest.raises(ModelFileError, match=r"built with ExecuTorch 99\.0\.0"):
        open_engine(copy)
    write_sidecar(copy, replace(facts, library_version="1.0.0"))
    open_engine(copy).close()
    write_sidecar(copy, replace(facts, target="tensorrt"))
    with pytest.raises(ModelFileError, match="not that of an ExecuTorch program"):
        open_engine(copy)
    for partitioner, title in (("coreml", "CoreML"), ("qnn", "QNN")):
        settings = facts.settings | {"partitioner": partitioner}
        write_sidecar(copy, replace(facts, settings=settings))
        with pytest.raises(DeviceError, match=f"built for {title}"):
            open_engine(copy)
    spec = replace(facts.spec, batch=2)
    write_sidecar(copy, replace(facts, spec=spec, batch=(2, 2, 2)))
    with pytest.raises(ModelFileError, match="do not match"):
        open_engine(copy)


def test_versions():
    assert running._version("1.5.1") < running._version("1.10.0") == running._version("1.10.0a0")


def test_bad_requests(exported, tmp_path):
    onnx, output = exported("semantic"), tmp_path / "m.pte"
    with pytest.raises(UsageError, match=r"suffix \.bin"):
        ExecuTorchConfig(onnx, tmp_path / "m.bin")
    with pytest.raises(UsageError, match="'mps' is unknown"):
        ExecuTorchConfig(onnx, output, partitioner="mps")
    with pytest.raises(UsageError, match="--fixed-batch"):
        ExecuTorchConfig(onnx, output, fixed_batch=0)
    with pytest.raises(UsageError, match="--soc"):
        ExecuTorchConfig(onnx, output, partitioner="qnn")
    with pytest.raises(UsageError, match="--soc"):
        ExecuTorchConfig(onnx, output, soc="SM8650")


@pytest.mark.parametrize("folder", [None, "", "empty"])
def test_qnn_without_its_sdk_downloads_nothing(exported, tmp_path, monkeypatch, folder):
    if folder is None:
        monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    else:
        monkeypatch.setenv("QNN_SDK_ROOT", folder and str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    output = tmp_path / "m.pte"
    config = ExecuTorchConfig(exported("semantic"), output, partitioner="qnn", soc="SM8650")
    with pytest.raises(MissingDependencyError, match="SDK") as raised:
        build_executorch(config)
    assert "QNN_SDK_ROOT" in raised.value.why
    assert list(tmp_path.iterdir()) == []


def test_other_precisions_are_refused(lowered, tmp_path):
    import onnx_ir as ir

    onnx = tmp_path / "m.onnx"
    ir.save(lowered("fp16"), onnx)
    with pytest.raises(UsageError, match="is fp16") as raised:
        build_executorch(ExecuTorchConfig(onnx, tmp_path / "m.pte"))
    assert "GELU" in raised.value.why
