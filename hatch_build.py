"""Compile the kernels of ``eomt_deploy/processing/native`` when the package is built.

The compiler is Zig's (PyPI package ziglang), which pip installs on all platforms and which
cross-compiles. ``EOMT_DEPLOY_TARGET`` selects another target than this machine.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("eomt_deploy/processing/native")
# Fused multiply-adds are written as FUSED, so that GPUs give the same bits. The kernels do not use
# errno or traps.
FLAGS = ["-O3", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-fvisibility=hidden", "-s", "-Wall", "-Wextra", "-Werror"]  # fmt: skip

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
        for table in sorted((Path(self.root) / "benchmarks").glob("*.toml")):
            build_data["force_include"][str(table)] = f"eomt_deploy/_data/benchmarks/{table.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"


def compile_library(root: Path, library: Path, triple: str, cpu: str | None) -> None:
    sources = sorted(str(path) for path in (root / NATIVE).glob("*.c"))
    where = ["-target", triple, *(["-mcpu=" + cpu] if cpu else [])]
    position = [] if "windows" in triple else ["-fPIC"]
    command = [sys.executable, "-m", "ziglang", "cc", *where, *FLAGS, *position, *sources]
    # Compile in a temporary folder, since Zig also writes an unneeded .lib beside a .dll. Then
    # rename, since a process that has loaded the old library would crash if its bytes changed.
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=root / NATIVE) as folder:
        made = Path(folder) / library.name
        subprocess.run([*command, "-o", str(made)], check=True)
        made.replace(root / library)
