"""Check whether ONNX Runtime can use a device."""

from __future__ import annotations

from eomt_deploy.backends.backend import Problem
from eomt_deploy.privacy import quiet_onnxruntime


def problem(device: str) -> Problem | None:
    """The problem with a device, if any: the CPU package has no CUDA provider."""
    if device != "cuda":
        return None
    import onnxruntime

    quiet_onnxruntime(onnxruntime)
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return None
    return Problem(
        "the installed ONNX Runtime is built for the CPU only",
        "pip uninstall onnxruntime; pip install 'eomt-deploy[cuda]'",
    )
