from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.backends import open_engine
from eomt_deploy.backends.aotinductor.engine import check_device, check_processor, save_package
from eomt_deploy.errors import DeviceError, ModelFileError, UsageError, VerificationError
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.network.folds import fold
from eomt_deploy.network.masked import choose_attention
from eomt_deploy.package_metadata import check_declared, read_metadata
from eomt_deploy.spec import METADATA_KEY

HERE = Path("m.pt2")


def test_package_equals_the_onnx_file(
    package: Path, exported: Callable[..., Path], image_path: Path
):
    with Segmenter(package) as compiled, Segmenter(exported("panoptic")) as plain:
        assert (compiled.engine.backend, compiled.engine.device) == ("aotinductor", "cpu")
        assert compiled.spec.batch == 1
        found, wanted = (s.predict(image_path) for s in (compiled, plain))
        assert (found.segment_map == wanted.segment_map).mean() > 0.9999
        images = tiny.images()  # more images than the package's batch
        for have, want in zip(compiled.engine.run(images), plain.engine.run(images), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-3, rtol=1e-3)


def test_an_fp8_package(tmp_path: Path, fast_compiler):
    arch = replace(tiny.ARCH, depth=1, num_blocks=1, num_upscale=1)  # quickly compiled
    files = tiny.write(tmp_path, tiny.network(arch))
    for number, image in enumerate(tiny.images(5)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    path = tmp_path / "fp8.pt2"
    config = ExportConfig(
        str(files.checkpoint), path, task="panoptic", classes=files.classes, device="cpu",
        precision="fp8", calibrate=tmp_path,
    )  # fmt: skip
    with fast_compiler:
        report = export(config)
    assert report.spec.precision == "fp8"
    assert report.compiled.startswith("for cpu in ")
    assert json.loads(report.spec.provenance["calibration"])["images"] == 4
    assert report.verdict is not None
    assert report.verdict.chosen.share == 1
    assert report.verdict.chosen.judgement.images == 1  # every fourth
    assert report.verdict.chosen.judgement.agreement > 0.9
    with open_engine(path) as engine:
        assert engine.spec == report.spec
        assert np.isfinite(engine.run(tiny.images(2))[1]).all()


def test_verify(package: Path, exported: Callable[..., Path], image_path: Path, cli):
    code, _, err = cli("verify", package, image_path)
    assert code == 2
    assert "does not name the ONNX model" in err
    code, out, err = cli("verify", package, image_path, "--against", exported("panoptic"))
    assert code == 0, err
    assert "aotinductor" in out


def test_outputs_are_the_callers_own(package: Path):
    with open_engine(package) as engine:
        first = engine.run(tiny.images()[:1])
        kept = [array.copy() for array in first]
        engine.run(255 - tiny.images()[:1])
        for array, copy in zip(first, kept, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_inspect_and_another_device(package: Path, cli):
    code, out, _ = cli("inspect", package, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["spec"]["task"] == "panoptic"
    assert data["aoti_device_key"] == "cpu"
    assert data["attention"] == {"flash_attention_for_cpu": tiny.ARCH.depth}
    assert f"{tiny.ARCH.depth} calls of flash_attention_for_cpu" in cli("inspect", package)[1]
    assert METADATA_KEY in read_metadata(package)
    with pytest.raises(DeviceError, match=r"cuda was requested, but .* compiled for cpu"):
        open_engine(package, device="cuda")


def test_what_is_no_package(tmp_path: Path):
    (tmp_path / "text.pt2").write_text("no zip file")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("data.json", "{}")
    for name, words in (
        ("text.pt2", "not an AOTInductor package"),
        ("other.pt2", "was not written by eomt-deploy"),
        ("none.pt2", "no model at"),
    ):
        with pytest.raises(ModelFileError, match=words):
            open_engine(tmp_path / name)


METADATA_PLACE = "data/aotinductor/model/wrapper_metadata.json"


def zipped(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, value in {METADATA_PLACE: content, **others}.items():
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"AOTI_DEVICE_KEY": 1}', r"AOTI_DEVICE_KEY'\]` must be printable text.*got 1"),
        (b'{"AOTI_DEVICE_KEY": "\\ud800"}', r"AOTI_DEVICE_KEY'\]` must be printable text"),
        (b'{"a": {"b": "c"}}', r"must be printable text.*got \{'b': 'c'\}"),
        (json.dumps({METADATA_KEY: 5}).encode(), "must be printable text"),
        (json.dumps({METADATA_KEY: "{}"}).encode(), "`name` is missing"),
        (b" " * 60_000_000, "declares 60,000,000 bytes, the maximum is"),
        (b" " * 200_000_000, "declare 200,000,000 unpacked bytes, the maximum is"),
    ],
)
def test_metadata_of_hostile_packages(tmp_path: Path, content: bytes, words: str):
    path = zipped(tmp_path / "m.pt2", content)
    with pytest.raises(ModelFileError, match=words):
        open_engine(path)


def test_a_package_that_would_fill_the_memory(tmp_path: Path):
    """Declared sizes without content, and content beyond the declared size."""
    path = zipped(tmp_path / "m.pt2", b"{}", weights=b"0123")
    data = path.read_bytes()
    start = data.rindex(b"PK\x01\x02")  # the central directory's entry of the weights
    path.write_bytes(data[: start + 24] + (3 << 30).to_bytes(4, "little") + data[start + 28 :])
    with pytest.raises(ModelFileError, match=r"declare 3,221,225,47\d unpacked bytes"):
        read_metadata(path)
    path = zipped(tmp_path / "m.pt2", b" " * 60_000_000)
    data = path.read_bytes()
    start = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[: start + 24] + (100).to_bytes(4, "little") + data[start + 28 :])
    tracemalloc.start()
    with pytest.raises(ModelFileError, match=r"damaged|maximum"):
        read_metadata(path)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_damaged_packages_of_every_kind(tmp_path: Path):
    """Changing any byte of a small package raises only our own error."""
    complete = zipped(tmp_path / "m.pt2", b'{"a": "b"}').read_bytes()
    for place in range(len(complete)):
        for value in (0, 1, 9, 0x80, 0xFF):
            data = bytearray(complete)
            data[place] = value
            (tmp_path / "m.pt2").write_bytes(data)
            with suppress(ModelFileError):
                assert read_metadata(tmp_path / "m.pt2") in ({"a": "b"}, {})


def test_declared_sizes_of_real_packages_are_possible(package: Path):
    with zipfile.ZipFile(package) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    assert declared < 10 * package.stat().st_size
    check_declared(declared, package.stat().st_size)
    check_declared(10 << 30, 1 << 30)
    with pytest.raises(ValueError, match="the maximum is"):
        check_declared(6 << 30, 6 << 20)


@pytest.mark.parametrize(
    ("metadata", "capability", "found"),
    [
        ({}, None, "cpu"),
        ({"AOTI_DEVICE_KEY": "cpu"}, "9.0", "cpu"),
        ({"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90"}, "9.0", "cuda"),
        ({"AOTI_DEVICE_KEY": "cuda"}, "8.9", "cuda"),
    ],
)
def test_device_of_a_package(metadata, capability, found):
    assert check_device(metadata, capability, HERE) == found


@pytest.mark.parametrize(
    ("capability", "words"), [(None, "this machine has none"), ("8.9", "this GPU has 8.9")]
)
def test_wrong_gpu_is_refused(capability, words):
    metadata = {"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90"}
    with pytest.raises(DeviceError, match=words):
        check_device(metadata, capability, HERE)


def test_wrong_processor_is_refused():
    metadata = {"AOTI_MACHINE": "x86_64", "AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}
    check_processor(metadata, "x86_64", ["avx2", "avx512f", "avx512_vnni"], HERE)
    check_processor(metadata, "x86_64", [], HERE)  # a system that does not report its flags
    with pytest.raises(DeviceError, match="x86_64 without avx512f, avx512_vnni"):
        check_processor(metadata, "x86_64", ["avx2"], HERE)
    with pytest.raises(DeviceError, match="x86_64, but this CPU is aarch64"):
        check_processor(metadata, "aarch64", ["asimd"], HERE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8", "calibrate": Path()}, "cannot be int8"),
        ({"precision": "fp16", "islands": False}, "--no-islands"),
        ({"precision": "fp16", "high": ("norm",)}, "--high"),
        ({"attention": "fused"}, "--attention"),
        ({"precision": "fp8", "calibrate": Path(), "budget": 1.0}, "--budget has no effect"),
        ({"precision": "fp8"}, "fp8 needs calibration images"),
        ({"device": "tpu"}, "'tpu' is unknown"),
    ],
)
def test_knobs_that_do_not_apply(options, words):
    with pytest.raises(UsageError, match=words):
        ExportConfig("c.bin", Path("m.pt2"), **options)
    with pytest.raises(UsageError, match="--device has no effect"):
        ExportConfig("c.bin", Path("m.onnx"), device="cpu")


def test_wrong_packages_are_not_written(tmp_path: Path, files: tiny.Files, monkeypatch):
    """The fix names what is possible for packages: they have no layers in FP32."""
    wrong = NetworkEngine(tiny.network(seed=9), tiny.spec())
    module = "eomt_deploy.exporting.aotinductor"
    monkeypatch.setattr(f"{module}.save_package", lambda *a, **k: a[2].write_bytes(b""))
    monkeypatch.setattr(f"{module}.open_aotinductor", lambda path: wrong)
    path = tmp_path / "m.pt2"
    config = ExportConfig(str(files.checkpoint), path, classes=files.classes, task="panoptic")
    with pytest.raises(VerificationError) as error:
        export(config)
    assert error.value.fix.startswith("Write an .onnx file")
    assert not path.exists()


def test_failed_compilation_leaves_nothing(tmp_path: Path, monkeypatch):
    network = fold(tiny.network())
    choose_attention(network.backbone, "sdpa")
    with pytest.raises(UsageError, match=r"does not have the suffix \.pt2"):
        save_package(network, tiny.spec(), tmp_path / "m.onnx")

    def half_done(program, *, package_path: str, inductor_configs):
        Path(package_path).write_bytes(b"half")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", half_done)
    with pytest.raises(RuntimeError, match="full"):
        save_package(network, tiny.spec(), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []
