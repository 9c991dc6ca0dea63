"""Self-describing ONNX -> TensorRT or TensorRT-RTX engine, with its sidecar.

:class:`BuildConfig` needs no TensorRT, so that mistakes are told at once; the rest imports it on
first use. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eomt_deploy.building.config import BuildConfig

if TYPE_CHECKING:
    from eomt_deploy.building.run import BuildReport, build, check_ready

__all__ = ["BuildConfig", "BuildReport", "build", "check_ready"]


def __getattr__(name: str) -> Any:
    if name in ("BuildReport", "build", "check_ready"):
        from eomt_deploy.building import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
