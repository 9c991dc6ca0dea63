"""Parameters and multiply-adds, counted as in the paper.

The paper's "GFLOPs" come from fvcore. It counts one multiply-add as one FLOP and adds norms and
bilinear sampling by their number of elements; activations, softmax and additions do not count.
PyTorch's own counter covers matrix multiplications and convolutions, with two FLOPs for each
multiply-add. We add fvcore's rules for the rest and halve the sum. On the meta device nothing is
computed or allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]
Formula = Callable[..., int]

NORM = 5
"""fvcore's FLOPs per element of a layer or group norm with weight and bias."""
BATCH_NORM = 2
"""fvcore's FLOPs per element of a batch norm that uses its stored statistics."""
BILINEAR = 4
"""fvcore's FLOPs per output element of bilinear resizing or sampling."""


@dataclass(frozen=True)
class Counts:
    """Size of a network.

    Attributes:
        params: number of weights and biases; buffers do not count.
        macs: multiply-adds of the complete batch, in fvcore's convention.
        operators: multiply-adds by operator (``addmm``, ``convolution``, …), largest first.
    """

    params: int
    macs: int
    operators: dict[str, int]


def count(module: nn.Module, example: Tensor) -> Counts:
    """Count the parameters of a module and the multiply-adds of ``module(example)``.

    Args:
        module: network on any device; ``meta`` takes neither time nor memory.
        example: images uint8 [B, H, W, 3] on the same device.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with torch.no_grad(), _Shapes(), counter:
        module(example)
    # The division is exact, because every formula returns an even number.
    flops = counter.get_flop_counts().get("Global", {})  # no entry if nothing was counted
    found = {str(op): total // 2 for op, total in flops.items()}
    operators = {
        name.removeprefix("aten."): macs
        for name, macs in sorted(found.items(), key=lambda item: -item[1])
    }
    params = sum(value.numel() for value in module.parameters())
    return Counts(params, sum(operators.values()), operators)


def count_step(
    step: int, backbone: str, *, size: tuple[int, int], queries: int, classes: int
) -> Counts:
    """Count a step of the ladder for one network input.

    The arguments are those of :func:`eomt_deploy.benchmarking.paper.ladder.build_step`.
    """
    from eomt_deploy.benchmarking.paper.ladder import build_step

    # Written-out attention, because fused attention has no operator on the meta device.
    model = build_step(
        step,
        backbone,
        size=size,
        queries=queries,
        classes=classes,
        attention="written",
        device="meta",
    )
    return count(model, torch.zeros((1, *size, 3), dtype=torch.uint8, device="meta"))


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers what operators return on the meta device.

    There, PyTorch computes shapes in Python, which is slow, and a network repeats its blocks.
    Bilinear sampling is replaced, because PyTorch splits it into 60 operators.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.grid_sampler_2d.default and args[0].is_meta:
            images, grid = args[:2]
            return images.new_empty((*images.shape[:2], *grid.shape[1:3]))
        key = func, _described(args), _described(kwargs)
        known = self._known.get(key)
        if known is not None:
            return tree_map_only(Tensor, Tensor.detach, known)
        made = func(*args, **(kwargs or {}))
        outputs = tree_leaves(made)
        if not func._schema.is_mutable and all(
            isinstance(x, Tensor) and x.is_meta for x in outputs
        ):
            self._known[key] = made
        return made


def _described(value: Any) -> Any:
    """What the output of an operator depends on, as a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, value.shape, value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(item)) for name, item in value.items())
    return type(value), value  # 1, 1.0 and True are equal, but give other types


def _by_input(weight: int) -> Formula:
    def formula(x: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * weight * prod(x)

    return formula


def _by_output(weight: int) -> Formula:
    def formula(*_: Any, out_shape: Shape, **__: Any) -> int:
        return 2 * weight * prod(out_shape)

    return formula


def _attention(q: Shape, k: Shape, v: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


_aten = torch.ops.aten
_FORMULAS: dict[Any, Formula] = {
    _aten.native_layer_norm: _by_input(NORM),
    _aten.native_group_norm: _by_input(NORM),
    _aten.native_batch_norm: _by_input(BATCH_NORM),
    _aten._native_batch_norm_legit_no_training: _by_input(BATCH_NORM),
    _aten.cudnn_batch_norm: _by_input(BATCH_NORM),
    _aten.upsample_bilinear2d: _by_output(BILINEAR),
    _aten.grid_sampler_2d: _by_output(BILINEAR),
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
