"""FP8 linear layers for PyTorch, from the same scales as those of the ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eomt_deploy.errors import DeviceError
from eomt_deploy.exporting.calibration import NUMBERS
from eomt_deploy.exporting.quantization import QuantizedLayer
from eomt_deploy.precision import PRECISIONS

FP8 = torch.float8_e4m3fn
LARGEST = NUMBERS["fp8"].largest


class Fp8Linear(nn.Module):
    """A linear layer whose input and weight are rounded to FP8 (E4M3), each with one scale.

    A GPU with FP8 tensor cores computes the product of the rounded values directly. It adds up with
    fewer bits than FP32 has (fast accumulation), as is usual for inference.

    Args:
        layer: the quantised layer.
        like: a tensor of the type and on the device of the layer's outputs.
    """

    weight: Tensor
    input_scale: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(self, layer: QuantizedLayer, like: Tensor) -> None:
        super().__init__()
        place = like.device
        values = torch.from_numpy(layer.weight.view(np.uint8).T.copy()).view(FP8)
        self.register_buffer("weight", values.to(place))  # [out, in]
        for name in ("input_scale", "weight_scale"):
            scale = torch.tensor(float(getattr(layer, name)), dtype=torch.float32, device=place)
            self.register_buffer(name, scale)
        self.register_buffer("bias", torch.from_numpy(layer.bias).to(place, like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Input [..., in]; returns [..., out] in the type of the input."""
        scaled = (x.float() / self.input_scale).clamp(-LARGEST, LARGEST).to(FP8)
        product: Any = torch._scaled_mm  # without annotations
        y: Tensor = product(
            scaled.flatten(0, -2), self.weight.t(), self.input_scale, self.weight_scale,
            bias=self.bias, out_dtype=x.dtype, use_fast_accum=True,
        )  # fmt: skip
        return y.reshape(*x.shape[:-1], -1)


def use_fp8(network: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Replace linear layers by FP8 ones, by module name. The network has its final type already."""
    for name, layer in layers.items():
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        network.set_submodule(name, Fp8Linear(layer, linear.weight))


def check_fp8(device: str) -> None:
    """Check that a device computes in FP8; a CPU converts it, slowly.

    Raises:
        DeviceError: the GPU has no FP8 tensor cores.
    """
    needed = PRECISIONS["fp8"].compute_capability
    if device != "cuda":
        return
    found = torch.cuda.get_device_capability()
    if found < tuple(map(int, needed.split("."))):
        raise DeviceError(
            f"This GPU has no FP8 tensor cores (compute capability {found[0]}.{found[1]}).",
            why=f"FP8 needs {needed} or later: Ada, Hopper or Blackwell.",
            fix="Use --precision fp16.",
        )
