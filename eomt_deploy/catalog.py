"""The data that people add to: `export/`, `engines/` and `benchmarks/` at the top of the
repository, one TOML file an entry. They travel in the wheel as `eomt_deploy/_data/`."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from eomt_deploy.backends.tensorrt.config import BuildConfig
from eomt_deploy.benchmarking.paper.suite_file import Suite
from eomt_deploy.classes import make_classes
from eomt_deploy.errors import EomtDeployError, UsageError
from eomt_deploy.spec import ClassInfo, Task
from eomt_deploy.units import parse_bytes

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """What the authors printed: the score of ``metric`` in percent, FPS on ``device``."""

    metric: str
    score: float
    source: str
    fps: float | None = None
    device: str = ""


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint.

    Attributes:
        name: file name of its TOML, and what users type.
        size: (H, W) it was trained at, pixels.
        weights: ``hf://owner/name@revision``, ``https://…#sha256=…``, or a file beside the TOML.
        classes: name of a list in ``export/classes/``.
        base_weights: what the weights are a difference to; gated, so that users get it themselves.
    """

    name: str
    task: Task
    size: tuple[int, int]
    dataset: str
    classes: str
    backbone: str
    queries: int
    parameters: int
    weights: str
    licence: str
    published: Published | None = None
    base_weights: str = ""
    note: str = ""

    @property
    def source(self) -> str:
        """What :func:`eomt_deploy.checkpoints.read_checkpoint` takes: hub name, address or path."""
        return self.weights if "://" in self.weights else str(folder("export") / self.weights)

    def class_list(self) -> tuple[ClassInfo, ...]:
        return class_lists()[self.classes]


@dataclass(frozen=True)
class EngineProfile:
    """How an artifact is run: a file of ``engines/`` with ``kind = "run"``."""

    name: str
    backend: str
    device: str
    summary: str


@dataclass(frozen=True)
class BuildProfile:
    """How an engine is built: a file of ``engines/`` with ``kind = "build"``.

    The fields but ``precision``, ``high`` and ``workspace`` (here ``4GiB``) are those of
    :class:`eomt_deploy.backends.tensorrt.BuildConfig`.

    Attributes:
        precision: what the model must be exported in; None takes any.
        high: roles or modules that the export keeps in FP32.
    """

    name: str
    summary: str
    target: str
    precision: str | None = None
    high: tuple[str, ...] = ()
    batch: tuple[int, int, int] | None = None
    workspace: str | None = None
    optimization_level: int | None = None
    tf32: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    compute_capabilities: tuple[str, ...] = ()

    def config(self, onnx: Path, output: Path) -> BuildConfig:
        """The build of ``onnx`` to ``output`` by this profile.

        Raises:
            UsageError: the profile contradicts itself, or the output is no engine.
        """
        return BuildConfig(
            onnx,
            output,
            target=cast("Any", self.target),  # BuildConfig checks it, with words
            batch=self.batch,
            workspace=None if self.workspace is None else parse_bytes(self.workspace),
            optimization_level=self.optimization_level,
            tf32=self.tf32,
            strip_weights=self.strip_weights,
            version_compatible=self.version_compatible,
            hardware_compatibility=cast("Any", self.hardware_compatibility),
            compute_capabilities=self.compute_capabilities,
            expect_precision=self.precision,
        )


@dataclass(frozen=True)
class BenchmarkPlan:
    """Stages to measure of every engine: a file of ``benchmarks/`` with ``kind = "stages"``."""

    name: str
    summary: str
    stages: tuple[str, ...]
    warmup: int
    iterations: int
    unstable_cv: float


def folder(name: str) -> Path:
    """``export``, ``engines`` or ``benchmarks``, in the wheel or in the repository."""
    packed = PACKAGE / "_data" / name
    return packed if packed.is_dir() else PACKAGE.parent / name


@cache
def checkpoints() -> dict[str, CatalogEntry]:
    """All entries of ``export/``, by name."""
    return {path.stem: _checkpoint(path) for path in _entries("export")}


@cache
def class_lists() -> dict[str, tuple[ClassInfo, ...]]:
    """The data sets' classes in ``export/classes/``, by name."""
    files = sorted((folder("export") / "classes").glob("*.toml"))
    return {f.stem: make_classes(_read_toml(f).get("classes", []), str(f)) for f in files}


@cache
def engine_profiles() -> dict[str, EngineProfile]:
    """The entries of ``engines/`` that run artifacts, by name."""
    return _of_kind("run", EngineProfile, "engines")


@cache
def build_profiles() -> dict[str, BuildProfile]:
    """The entries of ``engines/`` that build engines, by name."""
    return _of_kind("build", BuildProfile, "engines")


@cache
def benchmark_plans() -> dict[str, BenchmarkPlan]:
    """The entries of ``benchmarks/`` that `bench --engine` runs, by name."""
    return _of_kind("stages", BenchmarkPlan, "benchmarks")


@cache
def suites() -> dict[str, Suite]:
    """The entries of ``benchmarks/`` that `bench --suite` runs, by name: tables of the paper."""
    found = {}
    for path in _entries("benchmarks"):
        data = _read_toml(path)
        if data.pop("kind", None) != "suite":
            continue
        try:
            found[path.stem] = Suite.from_dict({"name": path.stem, **data})
        except (KeyError, TypeError, ValueError) as error:
            raise EomtDeployError(
                f"{path} is not a suite: {error}.", fix="Compare it with its neighbours."
            ) from error
    return found


def find_suite(name: str) -> Suite:
    """The suite called ``name``.

    Raises:
        UsageError: there is none; the message has them all.
    """
    known = suites()
    if name not in known:
        raise UsageError(f"There is no suite {name!r}.", fix=f"Known: {', '.join(known)}.")
    return known[name]


def find_checkpoint(name: str) -> CatalogEntry:
    """The entry called ``name``.

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    known = checkpoints()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UsageError(
        f"{name!r} is neither a file, a folder, an hf:// name nor in the catalog.",
        fix=(f"Did you mean {', '.join(near)}? " if near else "")
        + "`eomt-deploy list` shows the catalog.",
    )


def find_build_profile(name: str) -> BuildProfile:
    """The build profile called ``name``.

    Raises:
        UsageError: there is none; the message has them all.
    """
    known = build_profiles()
    if name not in known:
        raise UsageError(f"There is no build profile {name!r}.", fix=f"Known: {', '.join(known)}.")
    return known[name]


def match_weights(weights: str) -> CatalogEntry | None:
    """The entry whose weights are ``weights``, so that an hf:// name brings its classes, whatever
    its revision."""
    name = _without_revision(weights)
    return next((e for e in checkpoints().values() if _without_revision(e.weights) == name), None)


def _without_revision(weights: str) -> str:
    return weights.partition("@")[0] if weights.startswith("hf://") else weights


def _of_kind(kind: str, entry: Any, name: str) -> dict[str, Any]:
    """The entries of a folder whose TOML says ``kind = "…"``, by name."""
    files = {path: _read_toml(path) for path in _entries(name)}
    return {
        path.stem: _build(entry, path, data)
        for path, data in files.items()
        if data.pop("kind", None) == kind
    }


def _entries(name: str) -> list[Path]:
    return sorted(folder(name).glob("*.toml"))


def _checkpoint(path: Path) -> CatalogEntry:
    data = _read_toml(path)
    if data.get("task") not in get_args(Task):
        raise EomtDeployError(f"{path} has task {data.get('task')!r}.")
    if "published" in data:
        data["published"] = _build(Published, path, data["published"], named=False)
    entry: CatalogEntry = _build(CatalogEntry, path, data)
    return entry


def _build(kind: Any, path: Path, data: dict[str, Any], *, named: bool = True) -> Any:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if named:
        values["name"] = path.stem
    try:
        return kind(**values)
    except TypeError as error:
        raise EomtDeployError(
            f"{path} is not a {kind.__name__}: {error}.",
            fix="Compare it with its neighbours in the folder.",
        ) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise EomtDeployError(f"{path} cannot be read: {error}.") from error
