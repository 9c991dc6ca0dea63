"""Whether a compiled engine can run on a machine, decided from its sidecar.

TensorRT's own answer to a wrong version or GPU is a line of internals and an empty object, and
without a GPU it ends the process.
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
"""Major compute capabilities of GPUs for data centres alone: Hopper and its Blackwell successor."""
TRUST = "EOMT_DEPLOY_TRUST_ENGINES"
"""Environment variable that allows engines to bring code along."""


@dataclass(frozen=True)
class Machine:
    """What a plan depends on.

    Attributes:
        library_version: of the target's library; None where it cannot be used.
        gpu: what the GPU calls itself; None without one.
        compute_capability: as "8.9"; None without a GPU.
        driver: version of the NVIDIA driver; None where it is unknown.
        problem: why the library cannot be used, in words.
    """

    library_version: str | None
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    problem: str = ""


def this_machine(target: Target) -> Machine:
    """The machine that we run on; creates no CUDA context and no TensorRT object."""
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
    """Refuse what cannot run, in words, before TensorRT is asked.

    Args:
        engine: its file, for the command that mends it.

    Returns:
        Remarks on what runs, but not as well as it could.

    Raises:
        ArtifactError: the sidecar names a target that we do not know.
        DeviceError: no GPU, one that the engine was not built for, or another library version.
        MissingDependencyError: the library is not installed.
    """
    target = known_target(sidecar)
    if machine.gpu is None:
        raise DeviceError(
            f"There is no NVIDIA GPU here; this engine was built for {_built_for(sidecar)}.",
            why="The NVIDIA driver is missing, or reports no GPU.",
            fix=f"Run on a machine with such a GPU, or run {sidecar.onnx} on the CPU.",
        )
    rebuild = f"Build it again here: {_build_command(sidecar, target, engine)}"
    _check_library(sidecar, target, machine, rebuild)
    return _check_gpu(sidecar, machine, rebuild)


def check_trust(sidecar: Sidecar, environment: Mapping[str, str] = os.environ) -> None:
    """An engine that brings code along needs the user's word that it is trusted.

    The sidecar's own word will not do: it comes from whoever made the engine.

    Raises:
        UsageError: it brings code, and ``EOMT_DEPLOY_TRUST_ENGINES`` is not 1.
    """
    if sidecar.version_compatible and environment.get(TRUST) != "1":
        raise UsageError(
            "The engine was built to run with other versions of TensorRT, and brings code along.",
            why="Whoever made the file decides what that code does, with all your rights.",
            fix=f"Set {TRUST}=1 if you built it or trust who did, or build it here without "
            "--version-compatible.",
        )


def _check_library(sidecar: Sidecar, target: Target, machine: Machine, rebuild: str) -> None:
    name = library.NAMES[target]
    if machine.library_version is None:
        raise MissingDependencyError(
            f"This engine needs {name} {sidecar.library_version}, which cannot be used here.",
            why=machine.problem,
            fix=f"pip install 'eomt-deploy[{target}]'",
        )
    built, found = _numbers(sidecar.library_version), _numbers(machine.library_version)
    common = min(len(built), len(found))  # "11.4" says nothing of the patch
    # Built with this choice it brings a run-time along that later libraries can load.
    later = sidecar.version_compatible and target == "tensorrt"
    if built[:common] == found[:common] or (later and found > built):
        return
    raise DeviceError(
        f"The engine was built by {name} {sidecar.library_version}, here is {name} "
        f"{machine.library_version}.",
        why="It runs with the version that built it and later ones."
        if later
        else "It runs only with the very version that built it.",
        fix=f"{rebuild}\nOr install that version: "
        f"pip install '{PACKAGES[target]}=={sidecar.library_version}'",
    )


def _check_gpu(sidecar: Sidecar, machine: Machine, rebuild: str) -> tuple[str, ...]:
    major, minor = _numbers(machine.compute_capability or "0.0")[:2]
    if sidecar.target == "tensorrt-rtx" and major in NOT_RTX:
        raise DeviceError(
            f"TensorRT-RTX does not run on {machine.gpu} (compute capability "
            f"{machine.compute_capability}).",
            why="It is for RTX cards; GPUs for data centres alone need TensorRT itself.",
            fix=f"Build it with TensorRT here: {_build_command(sidecar, 'tensorrt', None)}",
        )
    if not sidecar.runs_on((major, minor)):
        raise DeviceError(
            f"The engine was built for {_built_for(sidecar)}, here is {machine.gpu} "
            f"(compute capability {machine.compute_capability}).",
            why="GPUs of another compute capability run other machine code.",
            fix=rebuild,
        )
    tuned = sidecar.target == "tensorrt" and sidecar.hardware_compatibility == "none"
    if tuned and sidecar.gpu is not None and sidecar.gpu != machine.gpu:
        return (
            f"The engine was tuned on {sidecar.gpu}; on {machine.gpu} one that is built here may "
            "be faster.",
        )
    return ()


def _numbers(version: str) -> tuple[int, ...]:
    """``"10.13.3.9"`` -> (10, 13, 3, 9); ends at the first part that is no number."""
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
