"""Weights on disk -> a plain state dict and the facts that its shapes tell."""

from eomt_deploy.checkpoints.checkpoint import Checkpoint
from eomt_deploy.checkpoints.reader import read_checkpoint

__all__ = ["Checkpoint", "read_checkpoint"]
