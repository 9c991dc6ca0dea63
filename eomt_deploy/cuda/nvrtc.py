"""Compile CUDA source with NVRTC, CUDA's runtime compiler; needs no GPU and no CUDA toolkit."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from typing import Any

from eomt_deploy import cache
from eomt_deploy.errors import DeviceError, MissingDependencyError, OutputError, first_line
from eomt_deploy.files import cache_folder

OPTIONS = ("--std=c++17", "--fmad=false")
"""Without ``--fmad=false``, a * b + c would round once, but the CPU path rounds twice."""
INSTALL = "pip install cuda-python nvidia-cuda-nvrtc"


def cached_cubin(source: str, capability: tuple[int, int]) -> bytes:
    """Compile CUDA source to a cubin for a compute capability, or load it from the cache folder.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: NVRTC does not support this compute capability.
    """
    version, supported = nvrtc_facts()
    architecture = choose_architecture(capability, supported)
    key = hashlib.sha256(repr((source, OPTIONS, architecture, version)).encode()).hexdigest()
    with contextlib.suppress(OutputError):  # there is no cache folder
        kept = cache.load(cache_folder() / "kernels" / f"{key}.cubin")
        if kept is not None:
            return bytes(kept)
    content = compile_source(source, architecture)
    with contextlib.suppress(OutputError):  # without the cache each start compiles for a second
        cache.store(cache_folder() / "kernels" / f"{key}.cubin", lambda file: file.write(content))
    return content


def choose_architecture(capability: tuple[int, int], supported: Collection[int]) -> int:
    """The newest architecture (89 for 8.9) whose machine code runs on this compute capability.

    Machine code runs on GPUs with the same major version and an equal or later minor version.

    Raises:
        DeviceError: NVRTC supports no such architecture.
    """
    major, minor = capability
    fitting = [a for a in supported if a // 10 == major and a % 10 <= minor]
    if not fitting:
        raise DeviceError(
            f"NVRTC cannot compile for a GPU of compute capability {major}.{minor}.",
            why=f"It supports {', '.join(f'{a // 10}.{a % 10}' for a in sorted(supported))}.",
            fix="Install another version of nvidia-cuda-nvrtc; newer ones support newer GPUs.",
        )
    return max(fitting)


def nvrtc_facts() -> tuple[tuple[int, int], list[int]]:
    """The version (major, minor) of NVRTC, and the architectures that it supports.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
    """
    nvrtc = _load_nvrtc()
    major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    (architectures,) = _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    return (major, minor), list(architectures)


def compile_source(source: str, architecture: int) -> bytes:
    """Compile CUDA source to a cubin for one architecture; needs no GPU.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: the source does not compile; the message contains NVRTC's log.
    """
    nvrtc = _load_nvrtc()
    (program,) = _checked(
        nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None)
    )
    try:
        options = [o.encode() for o in (f"--gpu-architecture=sm_{architecture}", *OPTIONS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            (size,) = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            log = _filled(nvrtc, nvrtc.nvrtcGetProgramLog, program, size)
            raise DeviceError(
                f"The CUDA kernels do not compile for sm_{architecture} ({result.name}).",
                why=log.rstrip(b"\0").decode(errors="replace").strip(),
                fix=f"Try another version of NVRTC: {INSTALL}",
            )
        (size,) = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        return _filled(nvrtc, nvrtc.nvrtcGetCUBIN, program, size)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _filled(nvrtc: Any, get: Any, program: Any, size: int) -> bytes:
    """Call a getter of NVRTC that fills a buffer of ``size`` bytes."""
    buffer = bytearray(size)
    _checked(nvrtc, get(program, buffer))
    return bytes(buffer)


def _load_nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the first call loads the library
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"The CUDA kernels cannot be compiled: {first_line(error)}.",
            why="NVRTC, CUDA's runtime compiler, or its Python binding is not installed.",
            fix=INSTALL,
        ) from error
    return nvrtc


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check the error code of an NVRTC call, and return its other results."""
    result, *values = answer
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"NVRTC failed with {result.name}.", fix=f"Reinstall it: {INSTALL}")
    return tuple(values)
