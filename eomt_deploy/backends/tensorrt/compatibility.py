"""Check from its sidecar whether an engine can run on a machine.

For a wrong version or GPU, TensorRT itself only logs an internal message and returns None; without
a GPU it crashes the process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.tensorrt import library
from eomt_deploy.devices import current_gpu
from eomt_deploy.errors import DeviceError, MissingDependencyError, UsageError
from eomt_deploy.sidecar import Sidecar, Target, known_target

PACKAGES: dict[Target, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13"}

NOT_RTX = (9, 10)
"""Major compute capabilities of data-centre GPUs, which are not RTX GPUs: Hopper and Blackwell."""
TRUST = "EOMT_DEPLOY_TRUST_ENGINES"
"""Environment variable that allows engines that contain code for the CPU."""


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that an engine depends on.

    Attributes:
        library_version: version of the target's library; None if it cannot be used.
        gpu: name of the GPU; None without a GPU.
        compute_capability: e.g. "8.9"; None without a GPU.
        driver: version of the NVIDIA driver; None if unknown.
        problem: reason why the library cannot be used.
    """

    library_version: str | None
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    problem: str = ""


def this_machine(target: Target) -> Machine:
    """Describe this machine without creating a CUDA context or TensorRT object."""
    version, problem = None, ""
    try:
        version = str(library.load(target).__version__)
    except MissingDependencyError as error:
        problem = " ".join(filter(None, (error.what, error.why)))
    gpu = current_gpu()
    if gpu is None:
        return Machine(version, None, None, None, problem)
    return Machine(version, gpu.name, gpu.compute_capability, gpu.driver, problem)


def check_machine(
    sidecar: Sidecar,
    machine: Machine,
    *,
    engine: Path | None = None,
) -> tuple[str, ...]:
    """Check that an engine can run on a machine, before TensorRT loads it.

    Args:
        sidecar: description of the engine.
        machine: the machine.
        engine: file of the engine, for the rebuild command in the message.

    Returns:
        Remarks, e.g. if a rebuilt engine may be faster.

    Raises:
        ModelFileError: the target in the sidecar is unknown.
        DeviceError: there is no GPU, or the engine was built for another GPU or by another version
            of the library.
        MissingDependencyError: the library is not installed.
    """
    target = known_target(sidecar)
    if machine.gpu is None:
        raise DeviceError(
            f"This machine has no NVIDIA GPU; the engine was built for {_built_for(sidecar)}.",
            why="The NVIDIA driver is missing, or reports no GPU.",
            fix=f"Use a machine with a matching GPU, or run {sidecar.onnx} on the CPU.",
        )
    rebuild = f"Rebuild it on this machine: {_build_command(sidecar, target, engine)}"
    _check_library(sidecar, target, machine, rebuild)
    return _check_gpu(sidecar, machine, rebuild)


def check_trust(sidecar: Sidecar, environment: Mapping[str, str] = os.environ) -> None:
    """Check that the user trusts an engine that contains code for the CPU.

    The sidecar cannot grant this trust, because it comes from the creator of the engine.

    Raises:
        UsageError: the engine contains code, and ``EOMT_DEPLOY_TRUST_ENGINES`` is not 1.
    """
    if sidecar.version_compatible and environment.get(TRUST) != "1":
        raise UsageError(
            "The engine was built with --version-compatible and contains code for the CPU.",
            why="This code runs with all your permissions, and whoever built the file chose it.",
            fix=f"Set {TRUST}=1 if you built the engine or trust its creator, or rebuild it "
            "without --version-compatible.",
        )


def _check_library(sidecar: Sidecar, target: Target, machine: Machine, rebuild: str) -> None:
    name = library.NAMES[target]
    if machine.library_version is None:
        raise MissingDependencyError(
            f"This engine needs {name} {sidecar.library_version}, which is not usable on this "
            "machine.",
            why=machine.problem,
            fix=f"pip install 'eomt-deploy[{target}]'",
        )
    built, found = _numbers(sidecar.library_version), _numbers(machine.library_version)
    common = min(len(built), len(found))  # "11.4" does not specify the patch version
    # Such an engine contains a lean runtime that later versions of the library can load.
    later = sidecar.version_compatible and target == "tensorrt"
    if built[:common] == found[:common] or (later and found > built):
        return
    raise DeviceError(
        f"The engine was built by {name} {sidecar.library_version}, but {name} "
        f"{machine.library_version} is installed.",
        why="It runs only with the version that built it and later ones."
        if later
        else "It runs only with the version that built it.",
        fix=f"{rebuild}\nOr install that version: "
        f"pip install '{PACKAGES[target]}=={sidecar.library_version}'",
    )


def _check_gpu(sidecar: Sidecar, machine: Machine, rebuild: str) -> tuple[str, ...]:
    major, minor = _numbers(machine.compute_capability or "0.0")[:2]
    if sidecar.target == "tensorrt-rtx" and major in NOT_RTX:
        raise DeviceError(
            f"TensorRT-RTX does not run on {machine.gpu} (compute capability "
            f"{machine.compute_capability}).",
            why="It supports RTX GPUs only; data-centre GPUs need TensorRT.",
            fix=f"Rebuild it with TensorRT: {_build_command(sidecar, 'tensorrt', None)}",
        )
    if not sidecar.runs_on((major, minor)):
        raise DeviceError(
            f"The engine was built for {_built_for(sidecar)}, but this GPU is {machine.gpu} "
            f"(compute capability {machine.compute_capability}).",
            why="GPUs of another compute capability need other machine code.",
            fix=rebuild,
        )
    tuned = sidecar.target == "tensorrt" and sidecar.hardware_compatibility == "none"
    if tuned and sidecar.gpu is not None and sidecar.gpu != machine.gpu:
        return (
            f"The engine was optimized on {sidecar.gpu}. An engine that is built on this "
            f"{machine.gpu} may be faster.",
        )
    return ()


def _numbers(version: str) -> tuple[int, ...]:
    """``"10.13.3.9"`` -> (10, 13, 3, 9); stops at the first part that is not a number."""
    numbers = []
    for part in version.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers)


def _built_for(sidecar: Sidecar) -> str:
    words = "compute capability " + ", ".join(
        entry.replace("+", " and later") for entry in sidecar.compute_capabilities
    )
    return f"{sidecar.gpu} ({words})" if sidecar.gpu else words


def _build_command(sidecar: Sidecar, target: Target, engine: Path | None) -> str:
    choice = " --target tensorrt-rtx" if target == "tensorrt-rtx" else ""
    output = f"{Path(sidecar.onnx).stem}.engine" if engine is None else engine.name
    return f"eomt-deploy build {sidecar.onnx}{choice} -o {output}"
