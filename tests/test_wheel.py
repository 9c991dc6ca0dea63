"""The wheel in environments that have only the packages that its extras require."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from eomt_deploy.processing.cuda import kernels

pytestmark = pytest.mark.external

ROOT = Path(__file__).parents[1]


class Environment:
    """A virtual environment with the wheel.

    The packages that it requires are links to those of the tests: installing PyTorch takes longer
    than the rest of the test.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder)
        windows = sys.platform == "win32"
        self.bin = folder / ("Scripts" if windows else "bin")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        options = ("--no-deps", "--no-index", "--no-compile")
        subprocess.run([*pip, "--python", folder, "install", *options, wheel], check=True)
        (self.site,) = folder.glob("Lib/site-packages" if windows else "lib/*/site-packages")
        (self.ours,) = distributions(name="eomt-deploy", path=[str(self.site)])
        self.names: set[str] = set()

    def add(self, *extras: str) -> None:
        """Add what the wheel requires with these extras, and what those packages require."""
        pending: list[tuple[Distribution, set[str]]] = [(self.ours, set(extras))]
        seen = set()
        while pending:
            package, wanted = pending.pop()
            for text in package.requires or []:
                need = Requirement(text)
                if need.marker and not any(
                    need.marker.evaluate({"extra": extra}) for extra in wanted | {""}
                ):
                    continue
                if (key := (need.name, frozenset(need.extras))) not in seen:
                    seen.add(key)
                    required = distribution(need.name)
                    pending.append((required, set(need.extras)))
                    self._link(required)

    def _link(self, package: Distribution) -> None:
        self.names.add(package.name.lower())
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            link = self.site / name
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(name))))

    def run(self, *command: object, code: int = 0) -> str:
        program, *arguments = map(str, command)
        done = subprocess.run(
            [self.bin / program, *arguments],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},  # for `traces`
            capture_output=True, text=True, cwd=self.bin,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


# In one process, since importing PyTorch takes seconds. The exported network is traced here.
EXPORT_AND_DEMO = """
import sys
from eomt_deploy.cli import main

def run(*arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, stop.code

checkpoint, classes, model, demo = sys.argv[1:]
run("export", checkpoint, "--task", "semantic", "--classes", classes, "-o", model)
print("now the demo")
import traces
traces.install()
run("demo", "-o", demo, "--no-open")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_data_is_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in kernels.FILES:  # NVRTC compiles them on the user's machine
        assert f"eomt_deploy/processing/cuda/source/{name}" in names
    for name in ("DejaVuSans.ttf", "LICENSE_DEJAVU"):
        assert f"eomt_deploy/drawing/{name}" in names
    assert [n for n in names if n.endswith("dist-info/licenses/eomt_deploy/drawing/LICENSE_DEJAVU")]
    assert "eomt_deploy/_data/engines/tensorrt-rtx.toml" in names
    assert "eomt_deploy/_data/benchmarks/table1.toml" in names
    assert len([n for n in names if n.startswith("eomt_deploy/_data/examples/scenes/")]) == 6
    assert not [n for n in names if "benchmarks/results" in n or n.endswith("gpu_paper.py")]


def test_light_then_cpu_then_export(wheel, tmp_path, image_path, files, exported):
    environment = Environment(tmp_path / "venv", wheel)
    model = exported("semantic")

    environment.add()
    assert not {"torch", "onnxruntime", "transformers"} & environment.names
    assert '"eomt-tiny-scenes"' in environment.run("eomt-deploy", "list", "--json")
    assert "semantic" in environment.run("eomt-deploy", "inspect", model)
    seen = tmp_path / "seen.jpg"
    message = environment.run("eomt-deploy", "predict", model, image_path, "-o", seen, code=3)
    assert "pip install 'eomt-deploy[cpu]'" in message
    assert "eomt-deploy[cpu]" in environment.run("eomt-deploy", "doctor", code=3)

    environment.add("cpu")
    environment.run("eomt-deploy", "predict", model, image_path, "-o", seen)
    assert seen.stat().st_size > 1000
    own = tmp_path / "own.onnx"
    message = environment.run("eomt-deploy", "export", "eomt-tiny-scenes", "-o", own, code=3)
    assert "eomt-deploy[export" in message

    environment.add("cpu", "export")
    assert "transformers" not in environment.names
    paths = (files.checkpoint, files.classes, own, tmp_path / "demo")
    printed = environment.run("python", "-c", EXPORT_AND_DEMO, *paths)
    exported, said = printed.split("now the demo\n")
    assert exported.startswith("wrote")  # no warnings of libraries
    assert "6 overlays in" in said  # its scenes are inside the wheel, as for `uvx` and `pipx run`
    environment.run("eomt-deploy", "predict", own, image_path, "-o", tmp_path / "out")
    assert (tmp_path / "out/overlay/coffee.jpg").is_file()
    assert (tmp_path / "out/labels/coffee.png").is_file()
