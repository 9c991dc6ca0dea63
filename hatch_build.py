"""Compile the C code of ``eomt_deploy/processing/native`` when the package is built.

The compiler is Zig's (PyPI package ziglang), which pip installs on all platforms and which
cross-compiles. ``EOMT_DEPLOY_TARGET`` selects another target than this machine.

``python hatch_build.py FOLDER [TARGET ...]`` writes the C library to ``FOLDER/TARGET/``, for all
targets or for some: see docs/cpp.md.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("eomt_deploy/processing/native")
# Fused multiply-adds are written as FUSED, so that GPUs give the same bits. The kernels do not use
# errno or traps.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]  # fmt: skip
WASM = "eomt.wasm"
WASM_TARGET = "wasm32-wasi"
# Vectors of 128 bits, as in all browsers since 2023. The file imports nothing.
WASM_FLAGS = ["-msimd128", "-mexec-model=reactor", "-s", "-Wl,--export-dynamic",
              "-Wl,-z,stack-size=262144"]  # fmt: skip
LIBRARY = "-DEOMT_LIBRARY"
HEADERS = ("eomt.h", "eomt.hpp")

X86 = {"base": "x86_64_v2", "avx2": "x86_64_v3"}
ARM = {"base": None}
# Target: Zig's name, platform tag of the wheel, suffix of a library, CPU by variant.
TARGETS: dict[str, tuple[str, str, str, dict[str, str | None]]] = {
    "linux-x86_64": ("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", ".so", X86),
    "linux-aarch64": ("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", ".so", ARM),
    "darwin-arm64": ("aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib", ARM),
    "darwin-x86_64": ("x86_64-macos.11.0", "macosx_11_0_x86_64", ".dylib", X86),
    "windows-amd64": ("x86_64-windows-gnu", "win_amd64", ".dll", X86),
}


def this_machine() -> str:
    return f"{platform.system()}-{platform.machine()}".lower()


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Add the compiled libraries and the tables of benchmarks/ to a wheel.

    An editable install has the libraries beside the sources.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        name = os.environ.get("EOMT_DEPLOY_TARGET") or this_machine()
        if name not in TARGETS:
            known = ", ".join(TARGETS)
            raise RuntimeError(
                f"eomt-deploy cannot be compiled for {name}. Supported targets: {known}."
            )
        triple, tag, suffix, variants = TARGETS[name]
        for variant, cpu in variants.items():
            library = NATIVE / f"pixels-{variant}{suffix}"
            compile_library(Path(self.root), library, triple, cpu)
            build_data["artifacts"].append(f"/{library.as_posix()}")
        compile_wasm(Path(self.root), NATIVE / WASM)
        build_data["artifacts"].append(f"/{(NATIVE / WASM).as_posix()}")
        for table in sorted((Path(self.root) / "benchmarks").glob("*.toml")):
            build_data["force_include"][str(table)] = f"eomt_deploy/_data/benchmarks/{table.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"


def zig(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ziglang", *arguments], check=True)


def sources(root: Path) -> list[str]:
    return sorted(str(path) for path in (root / NATIVE).glob("*.c"))


def machine_flags(triple: str, cpu: str | None) -> list[str]:
    position = [] if "windows" in triple else ["-fPIC"]
    return ["-target", triple, *(["-mcpu=" + cpu] if cpu else []), *FLAGS, *position]


def compile_library(root: Path, library: Path, triple: str, cpu: str | None, *more: str) -> None:
    """Compile a shared library to ``library``, a path from ``root``."""
    flags = [*machine_flags(triple, cpu), *more]
    # Compile in a temporary folder, since Zig also writes a .lib beside a .dll. Then rename, since
    # a process that has loaded the old library would crash if its bytes changed.
    target = root / library
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=target.parent) as folder:
        made = Path(folder) / library.name
        zig("cc", "-shared", "-s", *flags, *sources(root), "-o", str(made))
        if LIBRARY in more and (imports := made.with_suffix(".lib")).exists():
            imports.replace(target.with_suffix(".lib"))
        made.replace(target)


def compile_wasm(root: Path, library: Path) -> None:
    """Compile the C library for browsers and Node to ``library``, a path from ``root``."""
    target = root / library
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=target.parent) as folder:
        made = Path(folder) / library.name
        flags = ["-target", WASM_TARGET, *FLAGS, *WASM_FLAGS, LIBRARY]
        zig("cc", *flags, *sources(root), "-o", str(made))
        made.replace(target)


def compile_archive(root: Path, library: Path, triple: str, cpu: str | None) -> None:
    """Compile a static library to ``library``, a path from ``root``."""
    flags = [*machine_flags(triple, cpu), LIBRARY, "-DEOMT_STATIC"]
    target = root / library
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=target.parent) as folder:
        objects = []
        for source in sources(root):
            objects.append(str(Path(folder) / f"{Path(source).stem}.o"))
            zig("cc", "-c", "-g0", *flags, source, "-o", objects[-1])
        made = Path(folder) / library.name
        zig("ar", "rcs", str(made), *objects)
        made.replace(target)


def build_c_library(root: Path, folder: Path, name: str) -> None:
    """Write headers and libraries for one target to ``folder``, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for header in HEADERS:
        shutil.copy(root / NATIVE / header, folder)
    if name == "wasm32":
        compile_wasm(root, folder / WASM)
        return
    triple, _, suffix, variants = TARGETS[name]
    for variant, cpu in variants.items():
        own = folder if len(variants) == 1 else folder / variant
        own.mkdir(exist_ok=True)
        prefix = "" if suffix == ".dll" else "lib"
        compile_library(root, own / f"{prefix}eomt{suffix}", triple, cpu, LIBRARY)
        compile_archive(root, own / "libeomt.a", triple, cpu)


def main(arguments: list[str]) -> None:
    known = (*TARGETS, "wasm32")
    if not arguments or not set(arguments[1:]) <= set(known):
        sys.exit(f"Usage: python hatch_build.py FOLDER [TARGET ...]\nTargets: {', '.join(known)}")
    root = Path(__file__).parent
    for name in arguments[1:] or known:
        build_c_library(root, Path(arguments[0]).resolve() / name, name)


if __name__ == "__main__":
    main(sys.argv[1:])
