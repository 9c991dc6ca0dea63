"""ONNX Runtime's C++ headers, which its Python package does not contain: from Debian."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE, SUITE = "libonnxruntime-dev", "trixie"
"""The first release of Debian that has the package."""
INSTALLED = Path("/usr/include/onnxruntime")
HEADER = "onnxruntime_cxx_api.h"


def headers(cache: Path) -> Path:
    """The folder with the headers: the installed ones, or those of Debian's package in ``cache``.

    Skips the test where neither can be had.
    """
    found = cache / "root" / INSTALLED.relative_to("/")
    for folder in (INSTALLED, found):
        if (folder / HEADER).exists():
            return folder
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and sources.exists()):
        pytest.skip(f"{PACKAGE} is not installed, and this is not Debian")
    host = re.search(r"^URIs: (\S+/debian)/?$", sources.read_text(), re.M)
    key = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not host or not key.exists():
        pytest.skip("apt has no source of Debian's packages")
    for name in ("lists/partial", "cache/archives/partial"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    (cache / "sources.list").write_text(f"deb [signed-by={key}] {host[1]} {SUITE} main\n")
    options = {
        "Dir::State::Lists": cache / "lists",
        "Dir::Cache": cache / "cache",
        "Dir::Etc::sourcelist": cache / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for command in ([*apt, "update"], [*apt, "download", PACKAGE]):
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[:200]}")
    (archive,) = cache.glob(f"{PACKAGE}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, cache / "root"], check=True)
    shutil.rmtree(cache / "lists")
    return found
