"""A build is compared with its ONNX model, and the file carries the result."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import tiny
from changed_engine import Changed

from eomt_deploy.backends import certification, open_engine
from eomt_deploy.backends.openvino.build import build_openvino, try_arithmetic
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.certificate import UNCHECKED
from eomt_deploy.devices import cpu_name
from eomt_deploy.errors import MissingDependencyError, VerificationError
from eomt_deploy.exporting import graph
from eomt_deploy.model_file import read_xml
from eomt_deploy.sidecar import onnx_sha256, sha256


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def built(exported, tmp_path):
    """Build m.xml from m.onnx."""
    model = tmp_path / "m.onnx"
    model.write_bytes(exported("panoptic").read_bytes())
    config = OpenVinoConfig(model, tmp_path / "m.xml", arithmetic="fp32")
    return lambda **changes: build_openvino(replace(config, **changes))


def test_a_build_has_a_certificate(built, tmp_path, image_path, cli):
    report = built(check_images=image_path)
    facts = read_xml(tmp_path / "m.xml")
    found = report.certificate
    assert replace(facts.certificate, weights_sha256=None) == found
    assert facts.certificate.weights_sha256 == sha256(tmp_path / "m.bin")
    assert facts.onnx == "m.onnx"
    assert facts.onnx_sha256 == onnx_sha256(tmp_path / "m.onnx")
    assert found.images == 1
    assert found.relative_error < 1e-4 < found.max_relative_error
    assert found.class_agreement == 1
    assert found.device == cpu_name()
    assert found.driver is None
    assert found.backend.startswith("openvino 20")
    assert found.backend.endswith(" in fp32")
    with open_engine(tmp_path / "m.xml") as engine:
        assert engine.remarks == ()
    code, out, _ = cli("inspect", tmp_path / "m.xml")
    assert code == 0
    assert "certificate" in out
    assert "unchecked" not in out
    data = json.loads(cli("inspect", tmp_path / "m.xml", "--json")[1])
    assert data["certificate"]["images"] == 1


def test_a_file_that_was_not_compared_says_so(built, tmp_path, picture, cli):
    report = built(check=False)
    assert report.certificate is None
    assert "has no certificate" in list(report.lines())[-1]
    path = tmp_path / "m.xml"
    assert read_xml(path).certificate is None
    assert "unchecked" in cli("inspect", path)[1]
    code, _, err = cli("predict", path, picture, "-o", tmp_path / "o")
    assert code == 0
    assert f"warning: {UNCHECKED}" in err

    code, out, err = cli("verify", path, "--save")
    assert code == 0, err
    assert "passed on 3 images" in out
    assert read_xml(path).certificate.images == 3
    _, _, err = cli("predict", path, picture, "-o", tmp_path / "o")
    assert UNCHECKED not in err
    before = read_xml(path).certificate
    assert cli("verify", path, picture, "--save")[0] == 0  # replaces the first one
    assert read_xml(path).certificate != before
    assert path.read_text().count("<certificate ") == 1
    with open_engine(path) as engine:
        assert engine.remarks == ()


def test_a_wrong_file_is_not_published(built, tmp_path, monkeypatch):
    built()
    before = {p.name: p.read_bytes() for p in tmp_path.glob("m.*")}
    real = certification.compare

    def wrong(engine, *others, **options):
        def shifted(class_logits, mask_logits):
            return class_logits, mask_logits + 1

        return real(Changed(engine, shifted), *others, **options)

    monkeypatch.setattr(certification, "compare", wrong)
    with pytest.raises(VerificationError, match=r"m\.xml does not compute what m\.onnx") as caught:
        built()
    assert "Nothing was written" in caught.value.what
    assert "--no-check" in caught.value.fix
    assert {p.name: p.read_bytes() for p in tmp_path.glob("m.*")} == before
    assert not list(tmp_path.glob(".eomt-deploy*"))


def test_missing_packages_of_the_reference(built, tmp_path, monkeypatch):
    real = certification.find_spec
    monkeypatch.setattr(
        certification, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    with pytest.raises(MissingDependencyError, match="needs onnxruntime") as caught:
        built()
    assert "--no-check" in caught.value.fix
    assert not list(tmp_path.glob("m.xml"))
    built(check=False)


def test_the_right_onnx_model_is_needed(built, exported, tmp_path, cli):
    built()
    path, model = tmp_path / "m.xml", tmp_path / "m.onnx"
    moved = model.rename(tmp_path / "moved.onnx")
    code, _, err = cli("verify", path)
    assert code == 2
    assert "There is no ONNX model at" in err
    assert "--against" in err
    assert cli("verify", path, "--against", moved)[0] == 0
    code, _, err = cli("verify", path, "--against", exported("semantic"))
    assert code == 2
    assert "is not the model that" in err
    assert "eomt-deploy compare" in err
    code, _, err = cli("verify", moved, "--against", exported("instance"))
    assert code == 2
    assert "--against does not apply to an .onnx file" in err
    code, _, err = cli("verify", moved, "--save")
    assert code == 2
    assert "cannot store a certificate" in err


def test_every_installed_backend_verifies_every_precision(saved, image_path, cli):
    for precision, backends in {
        "fp32": ("onnxruntime", "openvino", "emulation"),
        "fp16": ("onnxruntime", "openvino", "emulation"),
        "bf16": ("onnxruntime", "openvino", "emulation"),
        "int8": ("onnxruntime", "openvino", "emulation"),
        "fp8": ("emulation",),
    }.items():
        for backend in backends:
            code, _, err = cli("verify", saved(precision), image_path, "--backend", backend)
            assert code == 0, (precision, backend, err)


def test_report(saved, image_path, tmp_path, cli):
    code, out, _ = cli("verify", saved("fp32"), image_path, "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert report["passed"] is True
    assert report["problems"] == []
    assert report["comparison"]["images"] == 1
    assert report["limits"]["max_relative_error"] == 1e-3
    code, _, err = cli("verify", saved("fp32"), image_path, "--json", image_path)
    assert code == 2
    assert "input" in err


def test_weights_in_a_side_file(lowered, tmp_path, image_path, cli):
    graph.save(lowered("fp32"), tiny.spec(), tmp_path, "side.onnx", limit=0)
    code, _, err = cli("verify", tmp_path / "side.onnx", image_path, "--backend", "openvino")
    assert code == 0, err


def test_no_file_of_the_model_is_replaced_by_the_report(built, tmp_path, cli):
    built()
    before = {p.name: p.read_bytes() for p in tmp_path.glob("m.*")}
    for name in ("m.onnx", "m.xml", "m.bin"):
        code, _, err = cli("verify", tmp_path / "m.xml", "--json", tmp_path / name)
        assert code == 2, name
        assert "input" in err
    assert {p.name: p.read_bytes() for p in tmp_path.glob("m.*")} == before


def test_a_certificate_belongs_to_the_weights(built, tmp_path, cli):
    built()
    weights = tmp_path / "m.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert "invalid: the weights have changed" in cli("inspect", tmp_path / "m.xml")[1]
    data = json.loads(cli("inspect", tmp_path / "m.xml", "--json")[1])
    assert data["certificate_belongs_to_weights"] is False


def test_a_certificate_is_for_what_the_file_computes_in(built, tmp_path, cli):
    built(check=False)
    path = tmp_path / "m.xml"
    path.write_text(path.read_text().replace('arithmetic value="fp32"', 'arithmetic value="bf16"'))
    code, _, err = cli("verify", path, "--arithmetic", "fp32", "--save")
    assert code == 2
    assert "is built for bf16" in err
    assert read_xml(path).certificate is None
    assert cli("verify", path, "--arithmetic", "fp32")[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_an_xml_cannot_store(exported, tmp_path, cli):
    for number, name in enumerate((b"n\xff.onnx", b"n\x01.onnx")):
        model = tmp_path / os.fsdecode(name)
        model.write_bytes(exported("panoptic").read_bytes())
        output = tmp_path / f"{number}.xml"
        code, _, err = cli("build", model, "-o", output, "--arithmetic", "fp32")
        assert code == 0, err
        assert read_xml(output).onnx == ""
        assert cli("verify", output, "--against", model)[0] == 0


def test_trial_of_an_arithmetic(built, tmp_path, image_path):
    built(check=False)
    found = try_arithmetic(tmp_path / "m.xml", "fp32", [image_path])
    assert (found.agreement, found.images) == (1.0, 1)
    assert found.times_as_fast > 0


def test_an_older_xml(built, tmp_path, cli):
    built(check=False)
    path = tmp_path / "m.xml"
    text = path.read_text()
    start = text.index("<onnx ")
    end = text.index("/>", text.index("<onnx_sha256 ")) + 2
    path.write_text(text[:start] + text[end:])
    assert read_xml(path).onnx == ""
    code, _, err = cli("verify", path)
    assert code == 2
    assert "--against model.onnx" in err
    assert cli("verify", path, "--against", tmp_path / "m.onnx", "--save")[0] == 0
    path.write_text(path.read_text().replace("<eomt_deploy>", "<eomt_deploy >"))
    code, _, err = cli("verify", path, "--against", tmp_path / "m.onnx", "--save")
    assert code == 2
    assert "no place for a certificate" in err
    assert "comparing" not in err
