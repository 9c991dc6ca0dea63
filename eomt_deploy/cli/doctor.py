"""`eomt-deploy doctor`: installed packages, usable backends, and how to install the rest."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from eomt_deploy import devices, privacy
from eomt_deploy.backends.backend import NO_GPU, Backend, Problem, load
from eomt_deploy.backends.registry import BACKENDS, choose_backend
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.cli.console import print_json, stdout
from eomt_deploy.cli.support import show_matrix, try_matrix
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.support.matrix import cells


@dataclass(frozen=True)
class Ability:
    """Something that eomt-deploy can do, and whether it works on this machine."""

    name: str
    works: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """The facts that decide what can be installed here.

    Attributes:
        system: ``Linux``, ``Darwin`` or ``Windows``.
        gpus: names of the NVIDIA GPUs.
    """

    system: str
    gpus: tuple[str, ...] = ()

    @classmethod
    def this(cls) -> Machine:
        return cls(platform.system(), tuple(devices.cuda_device_names()))

    def install(self, extra: str) -> str:
        """The command that installs an extra; empty if it has no packages for this machine.

        On Linux, PyTorch from PyPI brings several gigabytes of CUDA packages, which a machine
        without a GPU cannot use.
        """
        if self.system == "Darwin" and extra in NVIDIA_EXTRAS:
            return ""
        command = f"pip install 'eomt-deploy[{extra}]'"
        torch = extra == "export" and devices.package_version("torch") is None
        if torch and self.system == "Linux" and not self.gpus:
            return f"{TORCH_FOR_CPU} && {command}"
        return command


NVIDIA_EXTRAS = ("cuda", "tensorrt", "tensorrt-rtx")
"""Extras without packages for macOS."""
TORCH_FOR_CPU = "pip install torch --index-url https://download.pytorch.org/whl/cpu"

# Ability -> required packages -> the extra that installs them.
PACKAGE_ABILITIES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("export checkpoints", ("torch", "onnxscript", "safetensors"), "export"),
    ("download from the Hugging Face hub", ("huggingface-hub",), "export"),
    ("read and write videos", ("av",), "video"),
    ("serve models (serve)", ("fastapi", "uvicorn", "grpcio", "prometheus-client"), "serve"),
    ("segment very many images (batch)", ("ray", "pyarrow", "pandas"), "batch"),
)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix",
            help="Show which backends and precisions this machine can verify or only build.",
        ),
    ] = False,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            help="With --matrix: export, build and run a small network of each family in each "
            "precision with each backend; this takes several minutes.",
        ),
    ] = False,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="With --matrix: only this backend, e.g. openvino. Can be repeated."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="With --matrix: only this family, e.g. DINOv3. Can be repeated."),
    ] = None,
) -> None:
    """Show what can run here, and how to install what is missing."""
    if matrix:
        wanted = cells(backend or (), family or ())
        (try_matrix if run else show_matrix)(wanted, json)
        return
    if run or backend or family:
        raise UsageError(
            "--run, --backend and --family need --matrix.",
            fix="Use e.g. eomt-deploy doctor --matrix --run --backend openvino",
        )
    machine = environment()
    abilities = find_abilities(Machine.this())
    if json:
        data = {
            "environment": machine,
            "privacy": [asdict(report) for report in privacy.reports()],
            "abilities": [asdict(a) for a in abilities],
        }
        print_json(data)
    else:
        _show(machine, abilities)
    if not any(a.works for a in abilities if a.name.startswith("run")):
        raise typer.Exit(3)


def find_abilities(here: Machine) -> list[Ability]:
    """What works on this machine; each fix can work on it, too."""
    return [*_engine_abilities(here), *_build_abilities(here), *_package_abilities(here)]


def _engine_abilities(here: Machine) -> list[Ability]:
    """Each backend on each of its devices."""
    automatic = _chosen_for_onnx()
    result = []
    for name, backend in BACKENDS.items():
        for device in backend.devices:
            what = f"run {', '.join(backend.suffixes)} with {name} on {device}"
            problem = _run_problem(backend, device, here)
            detail = backend.version or "installed"
            if device == "cuda":
                detail += f", {', '.join(here.gpus)}"
            elif name == automatic:
                detail += ", selected automatically"
            result.append(_ability(what, problem or detail))
    return result


def _run_problem(backend: Backend, device: str, here: Machine) -> Problem | None:
    """Why a backend cannot use a device; None if it can."""
    if device == "cuda" and not here.gpus:  # no package helps
        return Problem(NO_GPU)
    if not backend.installed:
        extra = "cuda" if backend.extra == "cpu" and device == "cuda" else backend.extra
        return Problem(f"{backend.package} is not installed", here.install(extra))
    return load(backend.problem)(device) if backend.problem else None


def _chosen_for_onnx() -> str | None:
    """The backend that is selected automatically for an .onnx file; None without any."""
    try:
        return choose_backend(Path("model.onnx"), None)
    except MissingDependencyError:
        return None


def _build_abilities(here: Machine) -> list[Ability]:
    """Each backend that has its own file format."""
    result = []
    for backend in BACKENDS.values():
        if backend.build is None:
            continue
        made = "sites" if backend.build.folder else backend.build.suffix
        what = f"build {made} with {backend.title}"
        if here.system == "Darwin" and backend.extra in NVIDIA_EXTRAS:
            result.append(_ability(what, Problem("NVIDIA has no packages for macOS")))
        elif backend.build.problem:
            found = load(backend.build.problem)()
            if isinstance(found, Problem) and found.fix == backend.install:
                found = found._replace(fix=here.install(backend.extra))
            result.append(_ability(what, found))
        else:
            problem = _run_problem(backend, backend.devices[0], here)
            result.append(_ability(what, problem or backend.version))
    return result


def _ability(name: str, found: Problem | str) -> Ability:
    if isinstance(found, Problem):
        return Ability(name, False, found.what, found.fix)
    return Ability(name, True, found)


def _package_abilities(here: Machine) -> list[Ability]:
    result = []
    for name, packages, extra in PACKAGE_ABILITIES:
        missing = [p for p in packages if devices.package_version(p) is None]
        found = ", ".join(f"{p} {devices.package_version(p)}" for p in packages)
        if missing:
            detail = f"{', '.join(missing)} is missing"
            result.append(Ability(name, False, detail, here.install(extra)))
        else:
            result.append(Ability(name, True, found))
    return result


def _privacy() -> list[str]:
    """Telemetry state of each library: off, unless the user enabled it."""
    return [
        f"{report.library}: "
        + (f"SENDS TELEMETRY, {report.reason}" if report.sends else "no telemetry")
        + ("" if report.sends else f" ({report.reason})")
        for report in privacy.reports()
    ] or ["no telemetry"]


def _show(machine: dict[str, object], abilities: list[Ability]) -> None:
    facts = Table(show_header=False, box=None)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    versions = machine["versions"]
    assert isinstance(versions, dict)
    facts.add_row("CPU", f"{machine['cpu']}, {machine['cores']} cores")
    facts.add_row("instructions", " ".join(devices.cpu_flags()) or "unknown")
    facts.add_row("memory", f"{machine['memory_gib']} GiB")
    facts.add_row("GPU", ", ".join(devices.cuda_device_names()) or "none")
    facts.add_row("Python", f"{machine['python']}, {machine['system']}")
    facts.add_row("packages", ", ".join(f"{k} {v}" for k, v in versions.items()))
    facts.add_row("privacy", "\n".join(_privacy()))
    stdout.print(facts)
    stdout.print()
    table = Table("", "feature", "status", "fix", box=None)
    for ability in abilities:
        mark = Text("yes", "green") if ability.works else Text("no", "red")
        table.add_row(mark, ability.name, ability.detail, ability.fix)
    stdout.print(table)
