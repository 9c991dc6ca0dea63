"""No telemetry is sent, and nothing is written outside the output and the cache folder."""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from PIL import Image
from traces import VARIABLE
from watched import REPOSITORY, Watched, compile_shim

from eomt_deploy import privacy

OUTLIVING_SECONDS = 4
"""Seconds to wait for child processes that send telemetry later; OpenVINO's have 3 seconds."""
CLI = ("-m", "eomt_deploy")
SPAWNS = """
import multiprocessing, sys
import numpy as np
from eomt_deploy import Segmenter

def work(backend):
    with Segmenter(sys.argv[1], backend=backend) as segmenter:
        segmenter.predict(np.zeros((64, 64, 3), np.uint8))

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        for backend in ("openvino", "onnxruntime"):
            child = multiprocessing.get_context(method).Process(target=work, args=(backend,))
            child.start()
            child.join()
            assert child.exitcode == 0, (method, backend)
    work("openvino")
    work("onnxruntime")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path | None:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two labelled images."""
    folder = tmp_path_factory.mktemp("data")
    for index, image in enumerate(tiny.images(2)):
        for name, array in (("images", image), ("labels", image[..., 0] % 5)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory, shim, files, data) -> Iterator[dict[str, Watched]]:
    """Run each command once in its own home folder, and wait for late child processes."""
    root = tmp_path_factory.mktemp("commands")
    model, image = root / "m.onnx", data / "images" / "0.png"
    program = root / "program.py"
    program.write_text(SPAWNS)
    predict = (*CLI, "predict", model, image, "-o")
    commands = {
        "export": (
            "-m", "traces", os.environ[VARIABLE], "export", files.checkpoint,
            "--task", "semantic", "--size", 64, "--classes", files.classes, "-o", model,
        ),
        "predict with ONNX Runtime": (*predict, root / "a", "--backend", "onnxruntime"),
        "predict with OpenVINO": (*predict, root / "b", "--backend", "openvino"),
        "predict with the emulation": (*predict, root / "c", "--backend", "emulation"),
        "eval": (*CLI, "eval", model, "--data", data),
        "build": (*CLI, "build", model, "-o", root / "m.xml"),
        "bench": (
            *CLI, "bench", "--engine", model, "--iterations", 6, "--score", 1,
            "--plot-pareto", root / "pareto.png",
        ),
        "doctor": (*CLI, "doctor"),
        "Python, with child processes": (program, model),
    }  # fmt: skip
    found = {}
    for name, command in commands.items():
        found[name] = Watched(root / name, shim)
        found[name].run(*command)
    time.sleep(OUTLIVING_SECONDS)
    yield found
    for one in found.values():
        one.proxy.close()


@pytest.mark.external
def test_no_command_contacts_anybody(watched, shim):
    assert {name: one.contacts for name, one in watched.items() if one.contacts} == {}
    if shim is None:
        pytest.skip("without a C compiler only what uses a proxy is counted")


@pytest.mark.external
def test_no_command_writes_outside_the_cache_folder(watched):
    assert {name: one.files() for name, one in watched.items() if one.files()} == {}
    folders = (one.home / "cache" / "eomt-deploy" for one in watched.values())
    kept = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    assert kept >= {"openvino", "matplotlib"}


def test_doctor_says_what_is_switched_off(tmp_path):
    out = Watched(tmp_path / "default", None).run(*CLI, "doctor", "--json")
    found = {r["library"]: r["sends"] for r in json.loads(out)["privacy"]}
    found.pop("ray", None)  # its extra is optional
    assert found == {"onnxruntime": False, "openvino": False, "huggingface_hub": False}
    assert "true" not in json.dumps(json.loads(out)["privacy"])
    chosen = Watched(tmp_path / "chosen", None, {"ORT_DISABLE_TELEMETRY": "0"})
    opt_in_to_openvino(chosen)
    out = chosen.run(*CLI, "doctor")
    assert "onnxruntime: SENDS TELEMETRY, you set ORT_DISABLE_TELEMETRY=0" in out
    assert "openvino: SENDS TELEMETRY, you opted in" in out
    assert "huggingface_hub: no telemetry (HF_HUB_DISABLE_TELEMETRY=1)" in out


def opt_in_to_openvino(one: Watched) -> None:
    """Opt in like OpenVINO's program `opt_in_out --opt_in`."""
    folder = one.home / ("cache/Intel Corporation" if os.name == "nt" else "intel")
    folder.mkdir()
    (folder / "openvino_telemetry").write_text("1")


@pytest.mark.external
def test_a_users_own_choice_stays(tmp_path, shim):
    """Also checks that our counters detect the telemetry of both libraries."""
    pytest.importorskip("openvino_telemetry")
    one = Watched(tmp_path, shim, {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0"})
    opt_in_to_openvino(one)
    out = one.run(
        "-c",
        "import os, time\n"
        "import eomt_deploy.backends.openvino.engine, eomt_deploy.backends.onnxruntime.engine\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])\n"
        f"time.sleep({OUTLIVING_SECONDS})",
    )
    assert out.split() == ["0", "0"]
    assert any("google-analytics" in contact for contact in one.contacts)
    assert "intel/openvino_ga_cid" in one.files()
    if privacy.find_spec("onnxruntime") and "1DS" in onnxruntime_privacy_statement():
        assert any("onnxruntime" in file for file in one.files())


def onnxruntime_privacy_statement() -> str:
    import onnxruntime

    path = Path(onnxruntime.__file__).with_name("Privacy.md")
    return path.read_text("utf-8") if path.exists() else ""


def test_openvino_is_only_imported_without_its_reports():
    """Any other import of OpenVINO would send telemetry."""
    guilty = []
    for folder in ("eomt_deploy", "benchmarks", "examples", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            text = file.read_text("utf-8")
            if file == Path(privacy.__file__) or "openvino" not in text:
                continue
            for node in imports_at_run_time(ast.parse(text)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if not getattr(node, "level", 0) and "openvino" in {n.split(".")[0] for n in names}:
                    guilty.append(f"{file}:{node.lineno}")
    assert guilty == []


def imports_at_run_time(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from imports_at_run_time(child)


def test_hiding_a_package_leaves_no_trace():
    import sys

    before = sys.modules.get(privacy.OPENVINO_REPORTER)
    with privacy._hidden(privacy.OPENVINO_REPORTER), pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401
    assert sys.modules.get(privacy.OPENVINO_REPORTER) is before


@pytest.mark.parametrize("value", ["1", "true", "YES", "0", "", "2"])
def test_variables_are_read_as_the_library_reads_them(monkeypatch, value):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    found = {report.library: report.sends for report in privacy.reports()}
    assert found["onnxruntime"] == (value not in ("1", "true", "YES"))


@pytest.mark.parametrize(("value", "sends"), [("0", False), ("1", True), (None, True)])
def test_only_0_switches_the_statistics_of_ray_off(monkeypatch, value, sends):
    pytest.importorskip("ray")
    monkeypatch.delenv(privacy.RAY_SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(privacy.RAY_SWITCH, value)
    found = {report.library: report.sends for report in privacy.reports()}
    assert found["ray"] == sends
    privacy.switch_off()
    assert os.environ[privacy.RAY_SWITCH] == (value or "0")
