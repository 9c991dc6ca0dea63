"""`eomt-deploy doctor`: what is here, what can run, and what would add the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from eomt_deploy import catalog, devices, privacy
from eomt_deploy.backends import BACKENDS, choose_backend
from eomt_deploy.backends.tensorrt import library
from eomt_deploy.backends.tensorrt.config import SUFFIX
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.cli.console import print_json, stdout
from eomt_deploy.devices import current_gpu
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.sidecar import TARGETS

NO_GPU = "the NVIDIA driver reports no GPU"


@dataclass(frozen=True)
class Ability:
    """Something that eomt-deploy can do, and whether it can do it here."""

    name: str
    works: bool
    detail: str
    fix: str = ""


# What the user gains -> distributions that it needs -> the extra that brings them.
PACKAGE_ABILITIES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("export checkpoints", ("torch", "onnxscript", "safetensors"), "export"),
    ("download from the Hugging Face hub", ("huggingface-hub",), "export"),
)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Say what is installed, what can run here, and which command adds what is missing."""
    machine = environment()
    abilities = [*_engine_abilities(), *_build_abilities(), *_package_abilities()]
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


def _engine_abilities() -> list[Ability]:
    gpus = devices.cuda_device_names()
    result = []
    for profile in catalog.engine_profiles().values():
        backend = BACKENDS[profile.backend]
        name = f"run {', '.join(backend.suffixes)} with {profile.backend} on {profile.device}"
        if not backend.installed:
            extra = "cuda" if profile.device == "cuda" else "cpu"
            own = profile.backend == "onnxruntime"
            fix = f"pip install 'eomt-deploy[{extra}]'" if own else backend.install
            result.append(Ability(name, False, f"{backend.package} is missing", fix))
        elif profile.device == "cuda":
            result.append(_cuda_ability(name, gpus, backend.package))
        else:
            detail = profile.summary
            if profile.backend == _chosen_for_onnx():
                detail += ", chosen by itself"
            result.append(Ability(name, True, detail))
    return result


def _chosen_for_onnx() -> str | None:
    """The run-time that opens an .onnx file unless another is named; None without any."""
    try:
        return choose_backend(Path("model.onnx"), None)
    except MissingDependencyError:
        return None


def _cuda_ability(name: str, gpus: list[str], package: str) -> Ability:
    if not gpus:
        return Ability(name, False, NO_GPU)
    if package == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            fix = "pip uninstall onnxruntime; pip install 'eomt-deploy[cuda]'"
            return Ability(name, False, "this ONNX Runtime is built for the CPU only", fix)
    return Ability(name, True, ", ".join(gpus))


def _build_abilities() -> list[Ability]:
    """TensorRT builds on the GPU that will run the engine, TensorRT-RTX anywhere."""
    result = []
    for target in TARGETS:
        name = f"build {SUFFIX} with {library.NAMES[target]}"
        try:
            version = str(library.load(target).__version__)
        except MissingDependencyError as error:
            result.append(Ability(name, False, error.what, error.fix))
            continue
        gpu = current_gpu()
        if target == "tensorrt" and gpu is None:
            fix = "build on the machine that will run it, or --target tensorrt-rtx"
            result.append(Ability(name, False, NO_GPU, fix))
            continue
        where = f"for {gpu.name}" if gpu and target == "tensorrt" else "for RTX GPUs, without one"
        result.append(Ability(name, True, f"{version}, {where}"))
    return result


def _package_abilities() -> list[Ability]:
    result = []
    for name, packages, extra in PACKAGE_ABILITIES:
        missing = [p for p in packages if devices.package_version(p) is None]
        found = ", ".join(f"{p} {devices.package_version(p)}" for p in packages)
        if missing:
            detail = f"{', '.join(missing)} is missing"
            result.append(Ability(name, False, detail, f"pip install 'eomt-deploy[{extra}]'"))
        else:
            result.append(Ability(name, True, found))
    return result


def _privacy() -> list[str]:
    """What the libraries report about their users, which is nothing unless the user wants it."""
    return [
        f"{report.library}: "
        + (f"SENDS USAGE REPORTS, {report.reason}" if report.sends else "no usage reports")
        + ("" if report.sends else f" ({report.reason})")
        for report in privacy.reports()
    ] or ["no usage reports"]


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
    table = Table("", "what", "state", "to add it", box=None)
    for ability in abilities:
        mark = Text("yes", "green") if ability.works else Text("no", "red")
        table.add_row(mark, ability.name, ability.detail, ability.fix)
    stdout.print(table)
