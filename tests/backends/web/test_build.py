"""`build m.onnx -o site/` and `inspect site/`."""

from __future__ import annotations

import json
import shutil

import pytest

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.web import runtime
from eomt_deploy.backends.web.config import WebConfig
from eomt_deploy.errors import UsageError

pytestmark = pytest.mark.external


@pytest.fixture
def build(cli, package, exported):
    def run(output, *more, task="panoptic"):
        return cli("build", exported(task), "-o", output, "--onnxruntime-web", package, *more)

    return run


def test_build_and_inspect(build, cli, tmp_path):
    code, out, err = build(f"{tmp_path}/site/", "--json", tmp_path / "report.json")
    assert code == 0, err
    assert "a visitor downloads" in out
    site = tmp_path / "site"
    listed = json.loads((site / "site.json").read_text())
    files = {
        p.relative_to(site).as_posix(): p.stat().st_size for p in site.rglob("*") if p.is_file()
    }
    known = {entry["path"]: entry["bytes"] for entry in listed["files"]}
    assert files.keys() - known.keys() == {"site.json", "service-worker.js"}
    assert known.items() <= files.items()
    # The service worker keeps every file, and no file refers to another server.
    head = (site / "service-worker.js").read_text().splitlines()[0]
    kept = json.loads(head.removeprefix("const SITE = ").removesuffix(";"))
    assert {*kept["small"], *kept["large"]} == {*known, "site.json"}
    for path in site.glob("page/**/*.*s"):
        assert "://" not in path.read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bytes"] == sum(files.values())
    assert report["visit_bytes"]["WebAssembly"] < report["bytes"]

    for path in (site, site / "index.html"):
        code, out, err = cli("inspect", path)
        assert code == 0, err
        assert "ONNX Runtime Web" in out
        assert "panoptic" in out
    assert json.loads(cli("inspect", site, "--json")[1])["spec"]["task"] == "panoptic"
    (site / "model" / "model.onnx").write_bytes(b"")
    code, _, err = cli("inspect", site)
    assert (code, "model.onnx is missing or damaged" in err) == (2, True)


@pytest.mark.usefixtures("package")  # the files of ONNX Runtime Web are in the cache folder
def test_export_writes_the_model_and_the_site(cli, files, tmp_path):
    command = (
        "export", files.checkpoint, "--task", "panoptic", "--size", "48x96",
        "--classes", files.classes, "-o", f"{tmp_path}/site/",
    )  # fmt: skip
    code, out, err = cli(*command)
    assert code == 0, err
    assert "verified against PyTorch" in out
    assert "a visitor downloads" in out
    model = tmp_path / "site.onnx"
    before = model.read_bytes()
    assert (tmp_path / "site" / "model" / "model.onnx").read_bytes() == before
    code, _, err = cli(*command)
    assert code == 2
    assert "already exists and would be replaced" in err
    assert "eomt-deploy build" in err
    assert model.read_bytes() == before


def test_a_site_is_replaced_but_no_other_file(build, tmp_path):
    site = tmp_path / "site"
    assert build(f"{site}/")[0] == 0
    (site / "CNAME").write_text("example.org")
    code, _, err = build(f"{site}/", "--no-webgpu", task="semantic")
    assert code == 0, err
    assert json.loads((site / "site.json").read_text())["spec"]["task"] == "semantic"
    assert not (site / "runtime" / "ort.webgpu.wasm").exists()  # of the first site
    assert (site / "CNAME").read_text() == "example.org"

    other = tmp_path / "other"
    (other / "page").mkdir(parents=True)
    (other / "page" / "main.js").write_text("mine")
    code, _, err = build(f"{other}/")
    assert code == 2
    assert "main.js, which eomt-deploy did not write" in err
    assert [p.name for p in other.rglob("*") if p.is_file()] == ["main.js"]
    assert build(f"{other}/", "--overwrite")[0] == 0
    (site / "index.html").write_text("<html>mine</html>")
    code, _, err = build(f"{site}/")
    assert (code, "index.html, which eomt-deploy did not write" in err) == (2, True)


def test_wrong_use(build, cli, exported, package, saved, tmp_path, monkeypatch):
    site = f"{tmp_path}/new/"
    for output, more, word in (
        (tmp_path / "new" / "page.html", (), f"-o {tmp_path}/new/page/"),
        (site, ("--check-images", "x"), "--check-images does not apply"),
        (site, ("--target", "openvino"), "openvino does not build sites"),
        (tmp_path / "m.xml", (), "--onnxruntime-web does not apply to OpenVINO"),
        (tmp_path / "new", (), "new/ (ONNX Runtime Web)"),
    ):
        code, out, err = build(output, *more)
        assert code == 2, (more, err)
        assert word in (out + err).replace("\n", " "), (more, err)
    code, _, err = cli("build", saved("bf16"), "-o", site, "--onnxruntime-web", package)
    assert (code, "does not run bf16 models" in err) == (2, True)
    assert not (tmp_path / "new").exists()

    # The package: another version, no package, no npm.
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    (broken / "ort.wasm.min.mjs").write_text("another version")
    (tmp_path / "no.tgz").write_bytes(b"no archive")
    for given, word in (
        (broken, "ort.wasm.min.mjs of onnxruntime-web@1.30.0 differs"),
        (tmp_path / "no.tgz", "is not the package onnxruntime-web"),
        (tmp_path / "none", "is not the package onnxruntime-web"),
    ):
        code, _, err = cli("build", exported("panoptic"), "-o", site, "--onnxruntime-web", given)
        assert (code, word in err.replace("\n", " ")) == (2, True), err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime.shutil, "which", lambda _: None)
    code, _, err = cli("build", exported("panoptic"), "-o", site)
    assert code == 3
    assert "npm pack onnxruntime-web@1.30.0" in err
    assert not (tmp_path / "new").exists()
    for command in (("predict", f"{tmp_path}/x.html", "a.png", "-o", "o"), ("inspect", tmp_path)):
        code, _, err = cli(*command)
        assert (code, "Traceback" in err) == (2, False)


def test_the_cache_keeps_the_files_for_the_next_build(package, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = runtime.runtime_files(package)
    runtime._keep(files)
    monkeypatch.setattr(runtime.shutil, "which", lambda _: None)
    assert runtime.runtime_files(None) == files
    assert runtime.can_download()
    kept = next(tmp_path.rglob("*-ort.wasm"))
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged: downloaded again
    assert not runtime.can_download()


def test_the_output_is_an_index(tmp_path):
    with pytest.raises(UsageError, match="A site is a folder"):
        WebConfig(tmp_path / "m.onnx", tmp_path / "m.html")


def test_doctor_and_backends(cli, exported):
    abilities = {a["name"]: a for a in json.loads(cli("doctor", "--json")[1])["abilities"]}
    assert "build sites with ONNX Runtime Web" in abilities
    assert not any("web on" in name for name in abilities)
    with pytest.raises(UsageError, match="no backend 'web' that runs models on this machine"):
        open_engine(exported("panoptic"), backend="web")
