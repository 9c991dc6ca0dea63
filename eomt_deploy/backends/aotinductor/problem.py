"""Check whether the installed PyTorch can use a device."""

from __future__ import annotations

from eomt_deploy.backends.backend import Problem
from eomt_deploy.devices import package_version


def problem(device: str) -> Problem | None:
    """The problem with a device, if any: PyTorch for the CPU has no CUDA."""
    version = package_version("torch") or ""
    if device != "cuda" or not version.endswith("+cpu"):
        return None
    return Problem(
        f"PyTorch {version} is built for the CPU only",
        "pip uninstall torch; pip install 'eomt-deploy[export]'",
    )
