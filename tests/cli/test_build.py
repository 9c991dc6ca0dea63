from __future__ import annotations

import json

import hand_made
import pytest

from eomt_deploy.devices import cuda_device_count


@pytest.fixture
def model(tmp_path):
    return hand_made.write(tmp_path / "m.onnx", "fp16")


def test_build_then_inspect(cli, model, tmp_path):
    engine, report = tmp_path / "m.engine", tmp_path / "report.json"
    code, out, err = cli(
        "build", model, "-o", engine, "--target", "tensorrt-rtx", "--compute-capability", "8.9",
        "--compute-capability", "12.0", "--batch", "1:2:4", "--workspace", "1GiB", "--tf32",
        "--expect-precision", "fp16", "--json", report,
    )  # fmt: skip
    assert code == 0, err
    assert f"wrote {engine} + {engine}.json" in out
    assert "fp16, batch 1:2:4" in out
    assert "4 in fp16, 3 in fp32" in out
    assert "building engine" in err
    data = json.loads(report.read_text())
    assert data["layers"]["precision"] == "fp16"
    assert data["sidecar"]["settings"]["workspace_bytes"] == str(1 << 30)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.engine", "m.engine.json", "m.onnx", "report.json",
    ]  # fmt: skip

    code, out, _ = cli("inspect", engine)
    assert code == 0
    for word in ("64x64", "cat*", "8.9, 12.0", "fp16", "maximum 4", "m.onnx"):
        assert word in out
    facts = json.loads(cli("inspect", engine, "--json")[1])
    assert facts["batch"] == [1, 2, 4]
    assert facts["spec"]["name"] == "made"

    engine.write_bytes(engine.read_bytes()[:-1])
    code, _, err = cli("inspect", engine)
    assert code == 2
    assert "cut off" in err
    (tmp_path / "m.engine.json").unlink()
    code, _, err = cli("inspect", engine)
    assert code == 2
    assert "m.engine.json is missing" in err


def test_profile_gives_settings_and_options_override_them(cli, model, tmp_path):
    engine = tmp_path / "m.engine"
    profile = ("--profile", "tensorrt-rtx-ada-blackwell")
    code, out, err = cli("build", model, "-o", engine, *profile, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["sidecar"]["compute_capabilities"] == ["8.9", "12.0"]
    assert f"wrote {engine}" in err
    code, out, _ = cli("build", model, "-o", engine, *profile, "--compute-capability", "8.6")
    assert code == 0
    assert "for 8.6, fp16" in out


def test_wrong_use(cli, model, tmp_path):
    engine = tmp_path / "new" / "m.engine"
    rtx = ("--target", "tensorrt-rtx")
    for arguments, code, word in (
        (("--target", "openvino"), 2, "tensorrt-rtx"),
        (("--compute-capability", "8.9"), 2, "does not apply"),
        ((*rtx, "--optimization-level", 3), 2, "does not apply"),
        ((*rtx, "--hardware-compatible", "ampere-plus"), 2, "does not apply"),
        ((*rtx, "--compute-capability", "9.0"), 2, "12.0"),
        ((*rtx, "--workspace", "4 gigs"), 2, "4GiB"),
        ((*rtx, "--workspace", "999999999999999GiB"), 2, "must be below 2**63"),
        (("--timing-cache", model), 2, "also the model or the output"),
        ((*rtx, "--batch", "8"), 2, "1:1:8"),
        ((*rtx, "--profile", "fast"), 2, "tensorrt-fastest"),
        ((*rtx, "--profile", "tensorrt-portable"), 2, "does not apply"),
        ((*rtx, "--json", model), 2, "is an input of this command"),
        ((*rtx, "--expect-precision", "int8"), 4, "int8 was requested"),
    ):
        found, out, err = cli("build", model, "-o", engine, *arguments)
        assert found == code, (arguments, err)
        assert word in err, (arguments, err)
        assert "Traceback" not in out + err
    assert cli("build", model, "-o", tmp_path / "m.plan", *rtx)[0] == 2
    assert cli("build", tmp_path / "none.onnx", "-o", engine, *rtx)[0] == 2
    assert not engine.parent.exists()


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_tensorrt_without_a_gpu(cli, model, tmp_path):
    code, _, err = cli("build", model, "-o", tmp_path / "m.engine")
    assert code == 3
    assert "--target tensorrt-rtx" in err


def test_unsupported_model(cli, tmp_path):
    model = hand_made.write(tmp_path / "m.onnx", unknown=("Foo",))
    code, out, err = cli("build", model, "-o", tmp_path / "m.engine", "--target", "tensorrt-rtx")
    assert code == 3
    assert "node_foo_out (Foo)" in err
    assert "Traceback" not in out + err


def test_doctor_reports_what_can_be_built(cli):
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    abilities = {a["name"]: a for a in json.loads(out)["abilities"]}
    assert abilities["build .engine with TensorRT-RTX"]["works"]
    if cuda_device_count() == 0:
        assert not abilities["build .engine with TensorRT"]["works"]
