"""Checkpoint -> self-describing ONNX, verified on real photos. Needs torch."""

from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.exporting.export import ExportReport, export

__all__ = ["ExportConfig", "ExportReport", "export"]
