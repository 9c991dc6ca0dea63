"""Conversion to OpenVINO's .xml, and the choice of its arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.openvino import build as building
from eomt_deploy.backends.openvino.build import Trial, build_openvino
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.errors import DeviceError, ModelFileError, OutputError, UsageError
from eomt_deploy.model_file import read_xml
from eomt_deploy.privacy import import_openvino

openvino = import_openvino()
ABLE = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trial(agreement=1.0, times=2.0):
    return lambda model, arithmetic, images: Trial(arithmetic, agreement, len(images), times)


def test_it_computes_what_the_graph_says(exported, tmp_path, image_path):
    config = OpenVinoConfig(exported("panoptic"), tmp_path / "m.xml", arithmetic="fp32")
    report = build_openvino(config)
    assert report.arithmetic == "fp32"
    assert report.trial is None
    assert [file.name for file in report.files] == ["m.xml", "m.bin"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["m.bin", "m.xml"]
    with open_engine(config.onnx, backend="onnxruntime") as one, open_engine(config.output) as two:
        assert one.spec == two.spec == read_xml(config.output)[0]
        assert two.arithmetic == "fp32"
        images = np.random.default_rng(0).integers(0, 256, (2, *one.spec.image_size, 3), np.uint8)
        for have, want in zip(two.run(images), one.run(images), strict=True):
            assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.skipif("BF16" not in ABLE, reason="This CPU does not compute in BF16.")
@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({}, "bf16"),
        ({"agreement": 0.9951}, "bf16"),
        ({"agreement": 0.9949}, "fp32"),
        ({"times": 1.01}, "fp32"),
    ],
)
def test_bf16_must_be_worth_it(exported, tmp_path, monkeypatch, found, chosen):
    monkeypatch.setattr(building, "try_arithmetic", trial(**found))
    report = build_openvino(OpenVinoConfig(exported("semantic"), tmp_path / "m.xml"))
    assert report.arithmetic == chosen
    assert read_xml(tmp_path / "m.xml")[1] == chosen
    with open_engine(tmp_path / "m.xml") as engine:
        assert engine.arithmetic == chosen
        assert engine.where == f"openvino on cpu, computing in {chosen}"


@pytest.mark.skipif("BF16" not in ABLE, reason="This CPU does not compute in BF16.")
def test_the_trial_is_a_real_one(exported, tmp_path, image_path):
    config = OpenVinoConfig(
        exported("semantic"), tmp_path / "m.xml", arithmetic="bf16", check_images=image_path
    )
    report = build_openvino(config)
    assert report.arithmetic == "bf16"  # requested, whatever the comparison gave
    assert report.trial.images == 1
    assert 0.5 < report.trial.agreement <= 1
    assert report.trial.times_as_fast > 0


def test_bad_requests(exported, tmp_path):
    model = exported("semantic")
    with pytest.raises(UsageError, match=r"suffix \.bin"):
        OpenVinoConfig(model, tmp_path / "m.bin")
    with pytest.raises(UsageError, match="'f32' is unknown"):
        OpenVinoConfig(model, tmp_path / "m.xml", arithmetic="f32")
    if "FP16" not in ABLE:
        with pytest.raises(DeviceError, match="does not compute in fp16"):
            build_openvino(OpenVinoConfig(model, tmp_path / "m.xml", arithmetic="fp16"))
    with pytest.raises(ModelFileError):
        build_openvino(OpenVinoConfig(tmp_path / "none.onnx", tmp_path / "m.xml"))
    assert not list(tmp_path.glob("m.*"))


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "a.xml").write_text("<net/>")
    (tmp_path / "b.xml").write_text("no xml")
    for name, match in (("a", "not written by"), ("b", "not an .xml"), ("c", "There is no model")):
        with pytest.raises(ModelFileError, match=match):
            read_xml(tmp_path / f"{name}.xml")


def test_command_line(exported, tmp_path, cli):
    model, output = exported("semantic"), tmp_path / "m.xml"
    code, out, _ = cli("build", model, "-o", output, "--arithmetic", "fp32")
    assert code == 0
    assert "computes in fp32" in out
    code, out, _ = cli("inspect", output)
    assert code == 0
    assert "openvino" in out
    for options, word in (
        (("--workspace", "1GiB"), "--workspace does not apply to OpenVINO"),
        (("--target", "tensorrt"), "tensorrt does not build .xml files"),
        (("--profile", "tensorrt"), "tensorrt does not build .xml files"),
    ):
        code, _, err = cli("build", model, "-o", output, *options)
        assert code == 2
        assert word in err
    code, _, err = cli("build", model, "-o", tmp_path / "m.engine", "--arithmetic", "fp32")
    assert code == 2
    assert "--arithmetic does not apply to TensorRT" in err


def test_a_full_disk_is_reported_and_keeps_existing_files(exported, tmp_path, monkeypatch):
    output = tmp_path / "m.xml"
    build_openvino(OpenVinoConfig(exported("semantic"), output, arithmetic="fp32"))
    before = [file.read_bytes() for file in (output, output.with_suffix(".bin"))]

    def full(*_args, **_options):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(OutputError, match="could not write"):
        build_openvino(OpenVinoConfig(exported("instance"), output, arithmetic="fp32"))
    assert [file.read_bytes() for file in (output, output.with_suffix(".bin"))] == before
    assert not list(tmp_path.glob(".eomt-deploy*"))
    with pytest.raises(UsageError, match=r"suffix \.XML"):
        OpenVinoConfig(exported("semantic"), tmp_path / "m.XML")


def test_an_unreadable_image_of_the_trial_is_named(
    exported, tmp_path, monkeypatch, image_path, cli
):
    judged = []

    def judge(model, arithmetic, images):
        judged.extend(images)
        return trial()(model, arithmetic, images)

    monkeypatch.setattr(building, "try_arithmetic", judge)
    monkeypatch.setattr("eomt_deploy.backends.openvino.engine.able", lambda core: ["fp32", "bf16"])
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.jpg").write_bytes(image_path.read_bytes())
    (folder / "c.jpg").write_bytes(b"broken")
    (folder / "c.txt").write_bytes(b"")
    model, output = exported("semantic"), tmp_path / "m.xml"
    code, _, err = cli("build", model, "-o", output, "--check-images", folder)
    assert code == 0
    assert [path.name for path in judged] == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]
    assert "1 of 5 images" in err
    assert "c.jpg is not an image" in err
    assert "left out 1 file: 1 .txt" in err
    (folder / "d.jpg").write_bytes(b"broken")
    code, _, err = cli("build", model, "-o", tmp_path / "n.xml", "--check-images", folder)
    assert code == 2
    assert "3 of 5 images" in err
    assert not (tmp_path / "n.xml").exists()
