"""Segment very many images on one machine or a cluster, with Ray Data."""

from __future__ import annotations

from eomt_deploy.batch.config import BatchConfig
from eomt_deploy.batch.report import BatchReport
from eomt_deploy.batch.run import run

__all__ = ["BatchConfig", "BatchReport", "run"]
