"""AOTInductor packages (``.pt2``): networks compiled ahead of time from ``torch.export``.

PyTorch runs them. A package contains machine code for one kind of device, and the description of
the model. Its requirements are read from the package and checked before PyTorch loads the code.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eomt_deploy import devices
from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.cache import keep_files_of_torch
from eomt_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    UsageError,
    first_line,
)
from eomt_deploy.model_file import parse_spec
from eomt_deploy.package_metadata import read_metadata
from eomt_deploy.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".pt2"
DEVICE_KEY = "AOTI_DEVICE_KEY"
CAPABILITY_KEY = "AOTI_COMPUTE_CAPABILITY"
INSTRUCTIONS = {
    "AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_bf16",
}  # fmt: skip
"""PyTorch's name of an instruction set -> CPU flag of the operating system."""


def save_package(
    network: nn.Module, spec: ModelSpec, path: Path, *, batch: int = 1, device: str | None = None
) -> None:
    """Compile a network to ``path``; after an error there is no partial file.

    Args:
        network: images uint8 [B, H, W, 3] -> (class logits, mask logits), on the target device and
            in the target precision.
        spec: description to store in the package; its batch becomes ``batch``.
        path: file with the suffix ``.pt2``.
        batch: fixed batch size.
        device: ``cpu`` or ``cuda``; None uses the device of the weights.

    Raises:
        UsageError: the file has another suffix.
    """
    import torch
    from torch._inductor import aoti_compile_and_package, config

    from eomt_deploy.files import staging_folder

    if path.suffix.lower() != SUFFIX:
        raise UsageError(
            f"{path} does not have the suffix {SUFFIX} of an AOTInductor package.",
            fix=f"Use {path.with_suffix(SUFFIX)}.",
        )
    keep_files_of_torch()
    place = device or next(network.parameters()).device.type
    example = torch.zeros((batch, *spec.image_size, 3), dtype=torch.uint8, device=place)
    metadata = {METADATA_KEY: replace(spec, batch=batch).to_json()}
    settings: dict[str, Any] = {"aot_inductor.metadata": metadata}
    if hasattr(config.aot_inductor, "precompile_headers"):
        # Precompiled headers take 280 MB in the temporary folder and do not speed up a single
        # compilation.
        settings["aot_inductor.precompile_headers"] = False
    with staging_folder(path) as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        program = torch.export.export(network, (example,), strict=False)
        made = aoti_compile_and_package(
            program,
            package_path=str(folder / path.name),
            inductor_configs=settings,
        )
        Path(made).replace(path)


def check_compiler() -> None:
    """Check, before the work starts, that PyTorch can compile.

    Raises:
        MissingDependencyError: there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise MissingDependencyError(
            "PyTorch needs a C++ compiler to compile the model, and there is none.",
            why=str(error).strip(),
            fix="Install g++ (Debian: apt install g++), or set the environment variable CXX to a "
            "C++ compiler.",
        ) from error


def check_device(metadata: dict[str, str], capability: str | None, path: Path) -> str:
    """The device that a package was compiled for, if this machine has it.

    Args:
        metadata: metadata of the package.
        capability: compute capability of the GPU, e.g. "9.0"; None without a GPU.

    Raises:
        DeviceError: there is no GPU, or it has another compute capability.
    """
    device = metadata.get(DEVICE_KEY, "cpu")
    if device == "cpu":
        return device
    built = metadata.get(CAPABILITY_KEY, "")
    if capability is None:
        raise DeviceError(
            f"{path} was compiled for a GPU, but this machine has none.",
            fix="Compile it for the CPU, or run it on a machine with an NVIDIA GPU.",
        )
    if built and built.replace(".", "") != capability.replace(".", ""):
        raise DeviceError(
            f"{path} was compiled for compute capability {built}, but this GPU has {capability}.",
            why="It contains machine code for one compute capability only.",
            fix="Compile it again on this machine.",
        )
    return device


def check_processor(
    metadata: dict[str, str], machine: str, flags: Collection[str], path: Path
) -> None:
    """Check that the CPU supports the instructions of a package: otherwise they crash the process.

    Args:
        metadata: metadata of the package.
        machine: architecture of this machine, as in ``platform.machine()``.
        flags: flags of this CPU; empty if the system does not report them.

    Raises:
        DeviceError: the package was compiled for another kind of CPU.
    """
    wanted = metadata.get("AOTI_MACHINE", machine)
    needed = [
        INSTRUCTIONS[n] for n in metadata.get("AOTI_CPU_ISA", "").split() if n in INSTRUCTIONS
    ]
    missing = [flag for flag in needed if flag not in flags] if flags else []
    if wanted != machine or missing:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise DeviceError(
            f"{path} was compiled for another CPU: {wanted}, but this CPU is {machine}{lacks}.",
            why="It contains machine code for one kind of CPU only.",
            fix="Compile it again on this machine.",
        )


def check_package(path: Path, device: str | None) -> tuple[ModelSpec, str]:
    """The description of a package and the device that it was compiled for.

    Args:
        device: ``cpu`` or ``cuda``; None allows both.

    Raises:
        ModelFileError: the file is not a package of eomt-deploy.
        DeviceError: this machine has no such device, or another one is wanted.
    """
    metadata = read_metadata(path)
    spec = parse_spec(metadata, path)
    gpu = devices.current_gpu()
    found = check_device(metadata, gpu.compute_capability if gpu else None, path)
    if found == "cpu":
        check_processor(metadata, platform.machine(), devices.cpu_flags(), path)
    if device is not None and device != found:
        raise DeviceError(
            f"{device} was requested, but {path} was compiled for {found}.",
            fix=f"Compile it for {device}, or leave the device out.",
        )
    return spec, found


def load_package(
    path: Path, *, single_threaded: bool = False, index: int = -1
) -> Callable[..., Any]:
    """Load the compiled function of a package: tensors on its device -> tensors.

    Args:
        single_threaded: only one thread uses it; CUDA graphs need this.
        index: number of the GPU; -1 is the current one of PyTorch.
    """
    from torch._inductor import aoti_load_package

    keep_files_of_torch()
    loaded: Callable[..., Any] = aoti_load_package(
        str(path), run_single_threaded=single_threaded, device_index=index
    )
    return loaded


def open_error(path: Path, error: Exception) -> ModelFileError | DeviceError:
    """The error for a package that PyTorch refuses."""
    import torch

    reason = first_line(error)
    if "out of memory" in reason.lower():
        return DeviceError(
            f"PyTorch cannot open {path}: the memory of the GPU is full.",
            why=reason,
            fix="Close other programs that use the GPU (see `nvidia-smi`).",
        )
    return ModelFileError(
        f"PyTorch {torch.__version__} cannot open {path}.",
        why=reason,
        fix="Compile it again with this version of PyTorch, on this kind of machine.",
    )


class AotInductorEngine(Engine):
    """Runs a ``.pt2`` file from and to host memory; arguments as in
    :func:`eomt_deploy.backends.open_engine`."""

    backend = "aotinductor"

    def __init__(self, path: Path, *, device: str | None, threads: int | None) -> None:
        super().__init__()
        self.path = path
        self.spec, self.device = check_package(path, device)
        import torch

        self._torch: Any = torch
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self._call: Callable[..., Any] | None = load_package(path)
        except Exception as error:  # e.g. compiled with another version of PyTorch
            raise open_error(path, error) from error

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        assert self._call is not None  # Engine.run refuses closed engines
        torch = self._torch
        with torch.inference_mode():
            outputs = self._call(torch.from_numpy(images).to(self.device))
            # Copy them: the package may reuse its memory.
            class_logits, mask_logits = (np.array(o.float().cpu()) for o in outputs)
        return class_logits, mask_logits

    def close(self) -> None:
        super().close()
        self._call = None
