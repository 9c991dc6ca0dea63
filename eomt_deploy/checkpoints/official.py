"""Keys of the official code (tue-mps/eomt): timm names in the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOSS_PREFIX = "criterion."


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to our key layout: remove the prefix of the encoder, and the loss."""
    return {
        key.removeprefix("encoder."): tensor
        for key, tensor in tensors.items()
        if not key.startswith(LOSS_PREFIX)
    }
