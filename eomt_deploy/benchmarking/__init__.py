"""Honest measuring: what ran where, raw samples, and whether to believe them."""

from eomt_deploy.benchmarking.report import Report, Row
from eomt_deploy.benchmarking.stages import bench_stages

__all__ = ["Report", "Row", "bench_stages"]
