"""Segment very many images on one machine or a cluster, with Ray Data.

:class:`BatchConfig` is imported at once; everything else on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eomt_deploy.batch.config import BatchConfig

if TYPE_CHECKING:
    from eomt_deploy.batch.driver import run
    from eomt_deploy.batch.report import BatchReport

__all__ = ["BatchConfig", "BatchReport", "run"]


def __getattr__(name: str) -> Any:
    if name == "BatchReport":
        from eomt_deploy.batch.report import BatchReport

        return BatchReport
    if name == "run":
        from eomt_deploy.batch.driver import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
