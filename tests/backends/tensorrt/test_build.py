from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forked
import hand_made
import onnx
import pytest

from eomt_deploy.backends.tensorrt import library, settings
from eomt_deploy.backends.tensorrt.build import build, check_engine, check_network
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.backends.tensorrt.layers import Layer, LayerReport
from eomt_deploy.devices import Gpu, cuda_device_count
from eomt_deploy.errors import (
    BuildError,
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    OutputError,
    UsageError,
    VerificationError,
)
from eomt_deploy.sidecar import check_plan, read_sidecar, sidecar_path

NO_GPU = pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
RTX_HEADER = b"vtrt"


def left(config: TensorRtConfig) -> list[str]:
    folder = config.output.parent
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_plan_and_sidecar_belong_together(made):
    config = made()
    updates = []
    report = build(config, lambda text, fraction: updates.append((text, fraction)))
    assert left(config) == ["made.engine", "made.engine.json"]
    sidecar = read_sidecar(config.output)
    assert sidecar == report.sidecar
    check_plan(config.output, sidecar, full=True)
    assert config.output.read_bytes().startswith(RTX_HEADER)  # the unchanged engine plan
    assert sidecar.spec == hand_made.SPEC
    assert (sidecar.target, sidecar.precision, sidecar.batch) == ("tensorrt-rtx", "fp32", (1, 1, 8))
    assert sidecar.compute_capabilities == ("8.9",)
    assert sidecar.library_version == library.load("tensorrt-rtx").__version__
    assert sidecar.onnx_sha256 == hashlib.sha256(config.onnx.read_bytes()).hexdigest()
    assert sidecar.settings["tf32"] == "no"
    assert [w for w in report.warnings if "was not compared" not in w] == []
    assert report.seconds > 0
    fractions = [fraction for _, fraction in updates]
    assert fractions == sorted(fractions)
    assert updates[0][0] == "reading the model"
    assert any(0 < fraction < 1 for fraction in fractions)


def test_second_build_replaces_the_pair(made):
    build(made(options={"batch": (1, 2, 2)}))
    config = made(precision="fp16", batch=2)
    build(config)
    sidecar = read_sidecar(config.output)
    check_plan(config.output, sidecar, full=True)
    assert (sidecar.precision, sidecar.batch) == ("fp16", (2, 2, 2))


def test_every_later_gpu_where_none_is_named(made):
    for precision, minimum in (("fp16", "8.0+"), ("fp8", "8.9+")):
        config = made(precision=precision, options={"compute_capabilities": ()})
        assert build(config).sidecar.compute_capabilities == (minimum,)


def test_weights_beside_the_file(made):
    config = made(precision="fp16")
    side = config.onnx.with_name("made.onnx.data")
    model = onnx.load(config.onnx)
    onnx.save(model, config.onnx, save_as_external_data=True, location=side.name, size_threshold=64)
    both = hashlib.sha256(config.onnx.read_bytes() + side.read_bytes()).hexdigest()
    assert build(config).sidecar.onnx_sha256 == both
    content = side.read_bytes()
    for damage in (side.unlink, lambda: side.write_bytes(content[:10])):
        damage()
        with pytest.raises(ModelFileError, match=r"(?s)weights of .*made\.onnx\.data"):
            build(config)


def test_precision_that_was_not_requested_is_refused(made):
    config = made(said="fp16")
    with pytest.raises(VerificationError, match="requested, but the network computes in fp32"):
        build(config)
    config = made(precision="fp16", options={"expect_precision": "int8"})
    with pytest.raises(VerificationError, match=r"(?s)int8 was requested.*4 in fp16, 3 in fp32"):
        build(config)
    assert left(config) == []


def test_unsupported_nodes_are_named_before_the_build(made):
    config = made(unknown=("Foo", "Bar"))
    with pytest.raises(BuildError) as caught:
        build(config)
    text = str(caught.value)
    assert "2 of its nodes" in text
    assert "node_foo_out (Foo): neither the operator nor a plugin" in text
    assert "node_bar_out (Bar): neither the operator nor a plugin" in text
    assert caught.value.exit_code == 3
    assert left(config) == []


def test_long_lists_of_nodes_are_cut(made):
    with pytest.raises(BuildError, match=r"(?s)12 of its nodes.*and 2 more"):
        build(made(unknown=tuple(f"Op{i}" for i in range(12))))


def test_compile_errors_quote_the_library(made):
    config = made(precision="bf16", upscale="base")
    with pytest.raises(BuildError, match=r"(?s)could not build.*deconv: up1.*bf16") as caught:
        build(config)
    assert "_src/" not in str(caught.value)
    assert left(config) == []


def test_wrong_types_name_the_node(made, tmp_path):
    config = made()
    model = onnx.load(config.onnx)
    weight = next(w for w in model.graph.initializer if w.name == "fc1.weight")
    array = onnx.numpy_helper.to_array(weight).astype("float16")
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, config.onnx)
    with pytest.raises(BuildError, match=r"node_fc1 \(MatMul\): .*same input types"):
        build(config)


def test_too_little_workspace_says_so(made):
    with pytest.raises(BuildError, match=r"(?s)workspace limit.*Increase --workspace"):
        build(made(options={"workspace": 1}))


def test_gpus_that_cannot_compute_in_this_precision(made):
    with pytest.raises(BuildError, match=r"sm80, because .* fp8"):
        build(made(precision="fp8", options={"compute_capabilities": ("8.0", "8.9")}))


def test_batch_range_of_a_fixed_batch(made):
    with pytest.raises(UsageError, match="is fixed to 2"):
        build(made(batch=2, options={"batch": (1, 1, 8)}))


def test_files_that_are_no_models(made, tmp_path):
    config = made()
    (tmp_path / "text.onnx").write_text("hello")
    for name in ("text.onnx", "none.onnx"):
        with pytest.raises(ModelFileError):
            build(replace(config, onnx=tmp_path / name))
    sidecar_path(config.output).mkdir(parents=True)
    with pytest.raises(OutputError, match="folder"):
        build(config)


def test_names_that_are_no_text(made, tmp_path):
    config = made()
    odd = tmp_path / "caf\udce9.onnx"
    config.onnx.rename(odd)
    report = build(replace(config, onnx=odd, output=tmp_path / "caf\udce9.engine"))
    assert all(file.is_file() for file in report.files)


@NO_GPU
def test_what_needs_a_gpu_says_so(made):
    with pytest.raises(DeviceError, match="tensorrt-rtx"):
        build(made(options={"target": "tensorrt", "compute_capabilities": ()}))
    with pytest.raises(DeviceError, match="without weights"):
        build(made(options={"strip_weights": True}))


def test_library_that_is_missing_or_old(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"eomt-deploy\[tensorrt-rtx\]"):
        library.load("tensorrt-rtx")
    monkeypatch.undo()
    monkeypatch.setattr(library.load("tensorrt-rtx"), "__version__", "1.1.9")
    with pytest.raises(MissingDependencyError, match=r"1\.1\.9 is too old"):
        library.load("tensorrt-rtx")


def test_every_knob_of_tensorrt_reaches_the_librarys_settings(made):
    """Both libraries have the same settings classes; TensorRT-RTX is installed here."""
    module = library.load("tensorrt-rtx")
    builder = module.Builder(library.logger("tensorrt-rtx"))
    network = builder.create_network(1)
    network.add_input("images", module.DataType.UINT8, (-1, 64, 64, 3))
    config = TensorRtConfig(
        Path("m.onnx"),
        Path("m.engine"),
        workspace=1 << 30,
        optimization_level=5,
        strip_weights=True,
        version_compatible=True,
    )
    options = settings.configure(module, builder, network, config, (1, 2, 4))
    flag = module.BuilderFlag
    assert options.builder_optimization_level == 5
    assert options.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 1 << 30
    assert options.get_flag(flag.STRIP_PLAN)
    assert options.get_flag(flag.VERSION_COMPATIBLE)
    assert not options.get_flag(flag.TF32)
    assert options.num_optimization_profiles == 1
    plain = settings.configure(module, builder, network, replace(config, tf32=True), (1, 2, 4))
    assert plain.get_flag(flag.TF32)
    for level in ("none", "ampere_plus", "same_compute_capability"):
        assert hasattr(module.HardwareCompatibilityLevel, level.upper())


def test_capabilities_in_the_sidecar():
    gpu = Gpu("NVIDIA L4", "8.9", "580.65.06")
    config = TensorRtConfig(Path("m.onnx"), Path("m.engine"))
    assert settings.capabilities(config, gpu, "fp16") == ("8.9",)
    portable = replace(config, hardware_compatibility="ampere_plus")
    assert settings.capabilities(portable, gpu, "fp16") == ("8.0+",)


def test_progress_that_fails_stops_the_build(made):
    config = made()

    def progress(text: str, _fraction: float) -> None:
        if text.startswith("cloning"):
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal is gone"):
        build(config, progress)
    assert left(config) == []


def report(source: str, *precisions: str) -> LayerReport:
    return LayerReport(source, tuple(Layer("x", "gemm", p, True) for p in precisions))


def test_engine_must_have_the_requested_precision():
    network = report("network", "fp16", "fp16", "fp16", "fp32")
    assert check_engine(report("engine", "fp16", "fp32"), "fp16", network) == []
    with pytest.raises(VerificationError, match="requested, but the engine computes in fp32"):
        check_engine(report("engine", "fp32"), "fp16", network)
    with pytest.raises(VerificationError, match=r"(?s)the engine.*3 in fp32, 1 in fp16"):
        check_engine(report("engine", "fp16", "fp32", "fp32", "fp32"), "fp16", network)
    assert check_engine(network, "fp16", network) == []  # an engine that does not report its types


def test_quantised_layers_that_became_wider_are_reported():
    network = report("network", "int8", "int8", "fp16")
    assert check_engine(report("engine", "int8", "fp16"), "int8", network) == []
    (warning,) = check_engine(report("engine", "int8", "fp16", "fp16"), "int8", network)
    assert "1 layers are computed in a wider type than int8: 2 in fp16, 1 in int8" in warning
    with pytest.raises(VerificationError, match=r"(?s)int8 was requested.*2 in fp16"):
        check_engine(report("engine", "fp16", "fp16"), "int8", network)


def test_network_must_compute_in_what_the_model_says():
    check_network(report("network", "fp16", "fp32", "fp16"), "fp16", kept_high=False)
    mostly_high = report("network", "fp16", "fp32", "fp32")
    check_network(mostly_high, "fp16", kept_high=True)  # as `export --high backbone` makes it
    for layers in (mostly_high, report("network", "fp32"), report("network")):
        with pytest.raises(VerificationError, match="fp16 was requested"):
            check_network(layers, "fp16", kept_high=False)
    with pytest.raises(VerificationError, match="fp16 was requested"):
        check_network(report("network", "fp32"), "fp16", kept_high=True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_stopped_build_leaves_no_engine(made, name):
    config = made()
    config.output.parent.mkdir()
    config.output.write_bytes(b"old")
    process = forked.start(
        ["build", config.onnx, "-o", config.output, "--target", "tensorrt-rtx", "--overwrite"],
        imports=(*forked.PARSER, "eomt_deploy.backends.tensorrt.build"),
        stdout=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("preparing graph"):
            break
    assert lines[-1].startswith("preparing graph"), (lines, process.wait(60))
    process.send_signal(getattr(signal, name))
    rest = process.stderr.read()
    assert process.wait(timeout=60) != 0, rest
    assert "Traceback" not in rest
    assert "writing" not in rest
    assert left(config) == ["made.engine"]
    assert config.output.read_bytes() == b"old"


@pytest.mark.gpu
def test_tensorrt_on_this_gpu(made, tmp_path):
    """Build an engine, open it with the library and read its inspector."""
    if cuda_device_count() == 0:
        pytest.skip("no NVIDIA GPU")
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    for precision in ("fp32", "fp16", "int8"):
        cache = tmp_path / "x.timing"
        options = {"target": "tensorrt", "compute_capabilities": (), "timing_cache": cache}
        report = build(made(precision=precision, options=options))
        assert report.sidecar.precision == precision
        assert report.sidecar.gpu
        assert report.sidecar.driver
        assert cache.stat().st_size > 0
        print(precision, report.layers.source, dict(report.layers.heavy))
