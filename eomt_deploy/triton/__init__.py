"""Model repositories for NVIDIA's Triton Inference Server."""

from eomt_deploy.triton.options import Form, TritonConfig
from eomt_deploy.triton.repository import write_repository

__all__ = ["Form", "TritonConfig", "write_repository"]
