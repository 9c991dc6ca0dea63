"""Evaluation of exported models: labelled data, metrics and reports."""

from eomt_deploy.evaluation.datasets import open_dataset
from eomt_deploy.evaluation.evaluate import EvalReport, evaluate

__all__ = ["EvalReport", "evaluate", "open_dataset"]
