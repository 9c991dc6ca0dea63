"""Description of the machine and software that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any

from eomt_deploy import __version__, devices
from eomt_deploy.backends.registry import distributions

PACKAGES = ("numpy", "opencv-python-headless", "pillow", "onnx", "cuda-python")
"""Recorded packages, in addition to those of the backends."""


def environment(threads: int | None = None) -> dict[str, Any]:
    """Properties of this machine and process, ready for JSON.

    Args:
        threads: requested number of CPU threads; None leaves the choice to the backend.
    """
    versions = {name: devices.package_version(name) for name in (*PACKAGES, *distributions())}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": devices.cpu_name(),
        "cpu_flags": devices.cpu_flags(),
        "cores": devices.usable_cores(),
        "threads": threads,
        "memory_gib": round((devices.memory_bytes() or 0) / 2**30, 1),
        "gpus": devices.cuda_device_names(),
        "driver": gpu.driver if (gpu := devices.current_gpu()) else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"eomt-deploy": __version__} | {k: v for k, v in versions.items() if v},
    }
