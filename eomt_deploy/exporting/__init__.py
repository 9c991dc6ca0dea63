"""Export of a checkpoint to a self-describing model file, verified on real images.

:class:`ExportConfig` does not need torch, so that wrong options are reported at once. Everything
else does, and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eomt_deploy.exporting.config import ExportConfig

if TYPE_CHECKING:
    from eomt_deploy.exporting.run import ExportReport, export

__all__ = ["ExportConfig", "ExportReport", "export"]


def __getattr__(name: str) -> Any:
    if name in ("ExportReport", "export"):
        from eomt_deploy.exporting import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
