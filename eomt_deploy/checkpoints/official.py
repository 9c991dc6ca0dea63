"""Keys of the official code (tue-mps/eomt): ``network.*``, timm names in the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "network."
# torch.compile and DistributedDataParallel leave these in the middle of the keys.
WRAPPERS = ("_orig_mod.", "module.")
LOSS_PREFIX = "criterion."


def recognises(keys: Iterable[str]) -> bool:
    return any(_plain(key).startswith(PREFIX) for key in keys)


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our key layout: the official one without its prefixes, and without the loss."""
    result = {}
    for key, tensor in tensors.items():
        key = _plain(key)
        if not key.startswith(LOSS_PREFIX):
            result[key.removeprefix(PREFIX).removeprefix("encoder.")] = tensor
    return result


def _plain(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key
