"""The wheel in environments without other packages."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Environment:
    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / ("Scripts" if sys.platform == "win32" else "bin")

    def run(self, *command: object, code: int = 0) -> str:
        program, *arguments = map(str, command)
        done = subprocess.run(
            [self.bin / program, *arguments], capture_output=True, text=True, cwd=self.bin
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, what: object) -> None:
        self.run(
            "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-compile",  # compiling PyTorch takes longer than the rest of this test
            "-c", ROOT / "constraints.txt", what,
        )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_data_is_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "eomt_deploy/cuda/kernels.cu" in names
    assert "eomt_deploy/_data/engines/tensorrt-rtx.toml" in names
    assert "eomt_deploy/_data/benchmarks/table1.toml" in names
    assert not [n for n in names if "benchmarks/results" in n or n.endswith("gpu_paper.py")]


def test_light_then_cpu_then_export(wheel, tmp_path, image_path, exported):
    environment = Environment(tmp_path / "venv")
    model = exported("semantic")

    environment.install(wheel)
    packages = environment.run("python", "-m", "pip", "list")
    assert not {"torch", "onnxruntime", "transformers"} & set(packages.split())
    names = [e["name"] for e in json.loads(environment.run("eomt-deploy", "list", "--json"))]
    assert "eomt-tiny-scenes" in names
    assert "semantic" in environment.run("eomt-deploy", "inspect", model)
    seen = tmp_path / "seen.jpg"
    message = environment.run("eomt-deploy", "predict", model, image_path, "-o", seen, code=3)
    assert "pip install 'eomt-deploy[cpu]'" in message
    assert "eomt-deploy[cpu]" in environment.run("eomt-deploy", "doctor", code=3)

    environment.install(f"{wheel}[cpu]")
    environment.run("eomt-deploy", "predict", model, image_path, "-o", seen)
    assert seen.stat().st_size > 1000
    own = tmp_path / "own.onnx"
    message = environment.run("eomt-deploy", "export", "eomt-tiny-scenes", "-o", own, code=3)
    assert "eomt-deploy[export" in message

    environment.install(f"{wheel}[cpu,export]")
    environment.run("eomt-deploy", "export", "eomt-tiny-scenes", "-o", own)
    environment.run("eomt-deploy", "predict", own, image_path, "-o", tmp_path / "out")
    assert (tmp_path / "out/overlay/coffee.jpg").is_file()
    assert (tmp_path / "out/labels/coffee.png").is_file()
