"""The GPU engine for packages on a simulated GPU: see simulated_torch.py."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from dataclasses import replace
from shutil import copyfile

import gpu_engines
import ml_dtypes
import numpy as np
import pytest
import tiny
import torch
from host_twin import HostDevice, put, twin
from simulated_gpu import SimulatedGpu
from simulated_torch import SimulatedPackage

from eomt_deploy import Segmenter
from eomt_deploy.backends.aotinductor import gpu as module
from eomt_deploy.backends.aotinductor import open as opening
from eomt_deploy.backends.aotinductor import trial
from eomt_deploy.backends.aotinductor.engine import AotInductorEngine, check_package
from eomt_deploy.backends.aotinductor.gpu import TorchGpu, outputs_of
from eomt_deploy.backends.aotinductor.open import open_aotinductor
from eomt_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    OutputError,
    UsageError,
)  # fmt: skip
from eomt_deploy.exporting.fp8 import Fp8Linear
from eomt_deploy.labels import label_map
from eomt_deploy.processing.cuda.kernels import Kernels


@pytest.fixture
def compiled(package, monkeypatch):
    """A package that seems to be compiled for this machine's GPU."""
    found = check_package(package, None)[0], "cuda"
    for place in (module, opening):
        monkeypatch.setattr(place, "check_package", lambda path, device: found)
    return package


@pytest.fixture(scope="module")
def wanted(package):
    with AotInductorEngine(package, device="cpu", threads=None) as engine:
        return engine.run(tiny.images(5))


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}), (1, {}), (2, {"works": False}), (3, {"works": False}),
        (4, {"no_graph": "it crashed"}),
    ],
)  # fmt: skip
def test_results_are_those_of_the_cpu(compiled, wanted, seed, options):
    gpu = SimulatedGpu(seed)
    with SimulatedPackage(compiled, gpu, **options) as engine:
        for count in (1, 1, 5, 2):  # its batch is 1, so more images run in parts
            found = engine.run(tiny.images(5)[:count])
            on_gpu = engine.run_device(put(gpu, tiny.images(5)[:count]))
            for have, also, want in zip(found, on_gpu, wanted, strict=True):
                np.testing.assert_allclose(have, want[:count], atol=1e-4)
                np.testing.assert_array_equal(also.copy_to_host(engine.stream), have)
    del on_gpu, also
    gc.collect()
    assert not gpu.live


def test_the_second_run_is_recorded(compiled):
    with SimulatedPackage(compiled, SimulatedGpu()) as engine:
        assert engine.cuda_graph == "on from the second call"
        for _ in range(3):
            engine.run(tiny.images(1))
        assert engine.cuda_graph == "on"
        assert engine._torch.launched == ["_run", "replay", "replay"]


def test_a_run_that_cannot_be_recorded_is_repeated_without(compiled):
    with SimulatedPackage(compiled, SimulatedGpu(), works=False) as engine:
        for _ in range(3):
            engine.run(tiny.images(1))
        assert engine.cuda_graph == "off: CUDA error: operation not permitted"
        assert engine._torch.launched == ["_run"] * 3
        in_thread(lambda: [engine.run(tiny.images(1)) for _ in range(3)])
        assert engine._torch.recordings == 1  # other threads do not try again
    assert engine._torch.released == 1


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_each_thread_opens_the_package(compiled, wanted):
    results = []
    with SimulatedPackage(compiled, SimulatedGpu()) as engine:
        in_thread(lambda: results.append(engine.run(tiny.images(1))))
        assert engine._torch.opened == 2
        assert engine.cuda_graph == "on from the second call"  # of this thread
    np.testing.assert_allclose(results[0][1], wanted[1][:1], atol=1e-4)


@pytest.fixture
def host_kernels(monkeypatch):
    """The kernels of the pre- and post-processing, compiled for the CPU."""
    monkeypatch.setattr(
        "eomt_deploy.processing.cuda.processor.load_kernels", lambda gpu: Kernels(gpu, twin())
    )


@pytest.mark.usefixtures("host_kernels")
def test_a_segmenter_keeps_everything_on_the_gpu(compiled, tmp_path, image_path):
    with Segmenter(AotInductorEngine(compiled, device=None, threads=None)) as s:
        host = label_map(s.predict(image_path))
    with Segmenter(SimulatedPackage(compiled, HostDevice(tmp_path))) as segmenter:
        for _ in range(3):
            assert (label_map(segmenter.predict(image_path)) == host).mean() > 0.999


def test_threads_do_not_apply(compiled):
    with SimulatedPackage(compiled, SimulatedGpu(), threads=2) as engine:
        assert engine.remarks == (
            "The number of threads does not apply to the network, which runs on the GPU.",
        )


def test_a_failure_of_the_gpu(compiled, monkeypatch):
    with SimulatedPackage(compiled, SimulatedGpu()) as engine:

        def fail(run, stream):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

        monkeypatch.setattr(engine._torch, "launch", fail)
        with pytest.raises(DeviceError, match=r"failed to run tiny\.pt2 on the GPU") as error:
            engine.run(tiny.images(1))
        assert error.value.why == "CUDA out of memory. Tried to allocate 2 GiB"
    with pytest.raises(UsageError, match="closed"):
        engine.run(tiny.images(1))


def test_a_description_of_another_network(compiled, monkeypatch):
    spec = replace(check_package(compiled, None)[0], num_queries=7)
    monkeypatch.setattr(module, "check_package", lambda path, device: (spec, "cuda"))
    with (
        SimulatedPackage(compiled, SimulatedGpu()) as engine,
        pytest.raises(ModelFileError, match="do not match"),
    ):
        engine.run(tiny.images(1))


def test_a_damaged_package(compiled, tmp_path):
    path = tmp_path / "cut.pt2"
    path.write_bytes(compiled.read_bytes()[:2000])
    with pytest.raises(ModelFileError, match="cannot open"):
        SimulatedPackage(path, SimulatedGpu())


RUNS, CRASHES = f"print({trial.FINISHED!r})", "import os; os.abort()"
KILLED, REFUSED = "import os; os.kill(os.getpid(), 9)", "raise SystemExit(3)"


@pytest.fixture
def trials(compiled, monkeypatch, tmp_path):
    """Sets what the trial processes of a package do; returns the ways that were tried."""
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "check_gpu", lambda: None)
    monkeypatch.setattr(
        module,
        "AotInductorGpuEngine",
        lambda path, **options: SimulatedPackage(path, SimulatedGpu(), **options),
    )
    tried = []

    def ends(**ways):
        def command(path, way):
            tried.append(way)
            return [sys.executable, "-c", ways[way]]

        monkeypatch.setattr(trial, "_command", command)
        return tried

    return ends


def test_the_first_opening_is_tried_in_another_process(compiled, trials):
    tried = trials(graph=RUNS)
    for _ in range(2):
        with open_aotinductor(compiled) as engine:
            assert engine.cuda_graph == "on from the second call"
            assert engine.remarks == ()
    assert tried == ["graph"]


def test_a_graph_that_crashes_is_not_used(compiled, trials):
    tried = trials(graph=CRASHES, plain=RUNS)
    for _ in range(2):
        with open_aotinductor(compiled) as engine:
            engine.run(tiny.images(1))
            engine.run(tiny.images(1))
            assert engine._torch.launched == ["_run"] * 2
            assert engine.cuda_graph == f"off: {trial.CRASHED}"
            assert engine.remarks == (f"It runs without a CUDA graph: {trial.CRASHED}.",)
    assert tried == ["graph", "plain"]


def test_a_package_that_always_crashes_is_an_error(compiled, trials):
    trials(graph=CRASHES, plain=CRASHES)
    with pytest.raises(DeviceError, match=r"PyTorch crashed while it opened tiny\.pt2"):
        open_aotinductor(compiled)


@pytest.mark.parametrize("end", [KILLED, REFUSED, "print('something else')"])
def test_a_trial_without_a_finding_is_repeated(compiled, trials, end):
    """For example, the memory was full, or a package is missing."""
    tried = trials(graph=end)
    for _ in range(2):
        with open_aotinductor(compiled) as engine:
            assert engine.cuda_graph == f"off: {trial.NOT_TRIED}"
    assert tried == ["graph", "graph"]


def test_crashes_on_windows(compiled, monkeypatch):
    done = subprocess.CompletedProcess([], 0xC0000005, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert trial._try(compiled, trial.GRAPH) == "crashed"


@pytest.mark.parametrize("executable", ["", None])
def test_programs_that_are_no_python(compiled, trials, monkeypatch, executable):
    tried = trials()
    monkeypatch.setattr(sys, "executable", executable)
    with open_aotinductor(compiled) as engine:
        assert engine.cuda_graph == f"off: {trial.NO_PYTHON}"
    assert tried == []


def test_without_a_cache_folder(compiled, trials, monkeypatch):
    def fail():
        raise OutputError("There is no home folder.")

    tried = trials(graph=RUNS)
    monkeypatch.setattr(trial, "cache_folder", fail)
    for _ in range(2):
        with open_aotinductor(compiled) as engine:
            assert engine.cuda_graph == "on from the second call"
    assert tried == ["graph", "graph"]


def test_the_real_trial_finds_no_gpu_here(package, tmp_path, monkeypatch):
    """And it imports nothing from the current folder."""
    ended = []
    run = subprocess.run

    def kept(*arguments, **options):
        ended.append(run(*arguments, **options))
        return ended[-1]

    (tmp_path / "json.py").write_text("raise SystemExit('the wrong file')")
    (tmp_path / "eomt_deploy.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", kept)
    assert trial._try(package, "graph") == "unknown"
    (done,) = ended
    assert done.returncode == 1
    assert "DeviceError: cuda was requested, but" in done.stderr


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("CUDA error: out of memory"), DeviceError, "the memory of the GPU is full"),
        (MemoryError(), ModelFileError, "cannot open"),
    ],
)
def test_packages_that_cannot_be_opened(compiled, monkeypatch, error, kind, words):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("simulated_torch.load_package", fail)
    with pytest.raises(kind, match=words):
        SimulatedPackage(compiled, SimulatedGpu())


def test_without_cuda_python_everything_is_copied(compiled, monkeypatch):
    def fail():
        raise MissingDependencyError("cuda-python is missing.", fix="pip install it")

    monkeypatch.setattr(module, "check_gpu", fail)
    monkeypatch.setattr(
        "eomt_deploy.backends.aotinductor.engine.check_package",
        lambda path, device: (check_package(path, None)[0], "cpu"),
    )
    with open_aotinductor(compiled) as engine:
        assert isinstance(engine, AotInductorEngine)
        assert "which is slow. cuda-python is missing. pip install it" in engine.remarks[-1]


@pytest.mark.usefixtures("host_kernels")
@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_the_benchmark_for_a_gpu(compiled, tmp_path, monkeypatch, precision):
    """It runs on the CPU; the times of a simulated GPU mean nothing."""
    monkeypatch.setattr(gpu_engines, "PHOTO", (60, 90))
    saved = []

    def save_package(network, spec, path):
        saved.append(sum(isinstance(module, Fp8Linear) for module in network.modules()))
        copyfile(compiled, path)

    monkeypatch.setattr(gpu_engines, "save_package", save_package)
    found = gpu_engines.aotinductor_gpu(
        tmp_path,
        lambda path: SimulatedPackage(path, HostDevice(tmp_path)),
        device="cpu",
        cases=[("S", precision)],
        rounds=2,
        networks=lambda shape: (tiny.network(), tiny.spec()),
    )
    row = found[f"EoMT-S {precision}"]
    assert saved == [4 * tiny.ARCH.depth if precision == "fp8" else 0]
    assert row["cuda_graph"] == "on"
    assert row["error"] < 1e-4
    assert row["attention"] == {"flash_attention_for_cpu": tiny.ARCH.depth}
    assert row["network_ms"] > 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", np.float32), ("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)],
)
def test_types_of_the_outputs(precision, dtype):
    spec = tiny.spec(precision=precision)
    assert {t.dtype for t in outputs_of(spec)} == {np.dtype(dtype)}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, ml_dtypes.bfloat16])
def test_views_of_gpu_memory(dtype):
    from host_twin import gpu_device

    gpu = gpu_device()
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is for the CPU only")
    values = np.arange(24).reshape(2, 12).astype(dtype)
    array = put(gpu, values)
    view = TorchGpu(gpu.index).tensor(array.pointer, array.shape, array.dtype)
    assert view.data_ptr() == array.pointer
    np.testing.assert_array_equal(view.float().cpu().numpy(), values.astype(np.float32))
