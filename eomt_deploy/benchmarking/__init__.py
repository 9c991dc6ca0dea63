"""Benchmarks: raw samples, the machine they come from, and a verdict on their validity.

Names are imported on first use: timing, suites and their reports need neither OpenCV nor a
backend, so they also work on a machine that has only PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Report": "eomt_deploy.benchmarking.report",
    "Row": "eomt_deploy.benchmarking.report",
    "SuiteConfig": "eomt_deploy.benchmarking.paper.suite_config",
    "SuiteReport": "eomt_deploy.benchmarking.paper.report",
    "bench_stages": "eomt_deploy.benchmarking.stages",
    "run_suite": "eomt_deploy.benchmarking.paper.suite",
}

__all__ = ["Report", "Row", "SuiteConfig", "SuiteReport", "bench_stages", "run_suite"]

if TYPE_CHECKING:
    from eomt_deploy.benchmarking.paper.report import SuiteReport
    from eomt_deploy.benchmarking.paper.suite import run_suite
    from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig
    from eomt_deploy.benchmarking.report import Report, Row
    from eomt_deploy.benchmarking.stages import bench_stages


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
