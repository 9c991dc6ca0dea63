"""A new backend needs one folder and one row in the table: no other code changes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_baseline import small_baseline

from eomt_deploy.backends import registry
from eomt_deploy.backends.backend import Backend, Builder
from eomt_deploy.benchmarking.measure.clock import Rounds
from eomt_deploy.benchmarking.paper.suite import run_suite
from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig
from eomt_deploy.benchmarking.paper.suite_file import find_suite

ENGINE = """
from pathlib import Path

from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine


class NewEngine(Engine):
    backend, device = "new", "cpu"

    def __init__(self, path, *, device, threads):
        super().__init__()
        self.path = path
        self._inner = OnnxRuntimeEngine(Path(path.read_text().splitlines()[1]), threads=threads)
        self.spec = self._inner.spec

    def _run(self, images):
        return self._inner.run(images)
"""
BUILD = """
from dataclasses import asdict, dataclass

from eomt_deploy.backends.building import BuildConfig, check_suffix, option
from eomt_deploy.backends.certification import Check
from new_backend_of_a_test.engine import NewEngine


@dataclass(frozen=True, kw_only=True)
class NewConfig(BuildConfig):
    polish: int = option(1, "How often to polish the model (default: 1).", int)

    def __post_init__(self):
        check_suffix(self.output, ".new", "a new model")


@dataclass(frozen=True)
class NewReport:
    files: tuple
    certificate: object
    warnings: tuple = ()

    def lines(self):
        yield f"wrote {self.files[0]}"

    def to_dict(self):
        return {"files": [str(file) for file in self.files]}


def build(config, progress):
    progress("polishing", 0.5)
    check = Check(config)
    config.output.write_text(f"polished {config.polish} times\\n{config.onnx}")
    certificate = check.run(lambda: NewEngine(config.output, device=None, threads=None), progress)
    return NewReport((config.output,), certificate)
"""
INSPECT = """
from eomt_deploy.backends.inspection import Inspection


def inspect(path):
    rows = {"new": path.read_text().splitlines()[0]}
    return Inspection(rows, rows)
"""


@pytest.fixture
def new_backend(tmp_path, monkeypatch):
    """The folder and the row."""
    folder = tmp_path / "new_backend_of_a_test"
    folder.mkdir()
    for name, code in {
        "engine": ENGINE,
        "build": BUILD,
        "inspect": INSPECT,
        "__init__": "",
    }.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    row = Backend(
        title="New",
        package="new_backend_of_a_test",
        distributions=("pytest",),
        extra="new",
        suffixes=(".new",),
        devices=("cpu",),
        precisions=("fp32",),
        engine="new_backend_of_a_test.engine:NewEngine",
        inspect="new_backend_of_a_test.inspect:inspect",
        build=Builder(
            ".new",
            config="new_backend_of_a_test.build:NewConfig",
            run="new_backend_of_a_test.build:build",
        ),
    )
    monkeypatch.setitem(registry.BACKENDS, "new", row)


@pytest.fixture
def new_cli(new_backend, cli):
    """The command line with the new row: `build` reads its options when it is imported."""
    import typer

    from eomt_deploy.cli import app as module
    from eomt_deploy.cli import build
    from eomt_deploy.cli.options import with_options

    entry = next(c for c in module.app.registered_commands if c.name == "build")
    before = entry.callback
    entry.callback = with_options(build.build, build.command_options())
    assert isinstance(module.app, typer.Typer)
    module._parser.cache_clear()
    yield cli
    entry.callback = before
    module._parser.cache_clear()


def test_five_places(new_cli, exported, tmp_path, picture):
    cli = new_cli
    model = tmp_path / "m.onnx"
    model.write_bytes(exported("panoptic").read_bytes())
    code, out, err = cli("build", "--help")
    assert "--polish" in out
    code, out, err = cli("build", model, "-o", tmp_path / "m.new", "--polish", "3")  # 1: build
    assert code == 0, err
    assert "polishing" in err
    code, out, err = cli("inspect", tmp_path / "m.new")  # 2: inspect
    assert (code, out.split()) == (0, ["new", "polished", "3", "times"]), err
    code, out, _ = cli("doctor", "--json")  # 3: doctor, and the versions in each report
    abilities = {a["name"]: a["works"] for a in json.loads(out)["abilities"]}
    assert abilities["run .new with new on cpu"]
    assert abilities["build .new with New"]
    assert "pytest" in json.loads(out)["environment"]["versions"]
    code, _, err = cli("predict", tmp_path / "m.new", picture, "-o", tmp_path / "out")
    assert code == 0, err
    code, out, err = cli(  # 4: bench
        "bench", "--engine", tmp_path / "m.new", "--iterations", "2", "--warmup", "0", "--json", "-"
    )
    assert code == 0, err
    assert {row["backend"] for row in json.loads(out)["rows"]} == {"new"}
    code, _, err = cli("build", model, "-o", tmp_path / "m.engine", "--polish", "3")
    assert (code, "--polish does not apply to TensorRT" in err) == (2, True)


def test_suite(new_backend):
    table = find_suite("table1")
    row = next(row for row in table.rows if row.name == "step 5")
    suite = replace(table, rows=(row,), base=row.name)
    config = SuiteConfig(
        suite=suite, size=(64, 64), backbone="tiny", runtimes=("new",), precision="fp32",
        rounds=Rounds(2, warmup=0), probe=False,
    )  # fmt: skip
    with small_baseline():
        report = run_suite(config)  # 5: bench --suite
    assert {m.runtime for m in report.measurements} == {"new"}
