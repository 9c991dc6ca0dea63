"""Readers of checkpoints: a plain state dict, and the architecture inferred from its shapes."""

from eomt_deploy.checkpoints.checkpoint import Checkpoint
from eomt_deploy.checkpoints.reader import read_checkpoint

__all__ = ["Checkpoint", "read_checkpoint"]
