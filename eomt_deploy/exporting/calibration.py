"""Calibration: inputs of each quantised layer on real images, and their INT8 or FP8 range."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eomt_deploy.exporting.config import Method
from eomt_deploy.network.eomt import EoMT, fused_attention, on_gpu

Array = npt.NDArray[np.float32]

TOKENS = 2048
"""Number of tokens kept of each layer's input, the same number from each image."""
KEPT_BYTES = 1_500_000_000
"""Maximum memory for these tokens; large models keep fewer."""
PERCENTILE = 99.99
CLIPS = np.linspace(0.2, 1.0, 81)
"""Ranges that the MSE search tries, as fractions of the largest value."""
HISTOGRAM_BINS = 2048
LARGEST_SCALE = 1e4
"""Maximum SmoothQuant scale."""


@dataclass(frozen=True)
class Activations:
    """Inputs of one linear layer: sampled tokens, and the range of each channel.

    Attributes:
        samples: sampled tokens, [n, D].
        lowest, highest: minimum and maximum of each channel over all tokens, including 0, [D].
    """

    samples: Array
    lowest: Array
    highest: Array

    @property
    def largest(self) -> Array:
        """Maximum magnitude of each channel, [D]."""
        magnitude: Array = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        return magnitude

    def divided(self, scales: Array) -> Activations:
        """The inputs with each channel divided by its scale, which must be positive."""
        return Activations(self.samples / scales, self.lowest / scales, self.highest / scales)

    def centred(self, center: Array) -> Activations:
        """The inputs with the center of each channel subtracted."""
        return Activations(self.samples - center, self.lowest - center, self.highest - center)


@dataclass(frozen=True)
class Number:
    """A quantised number format.

    Attributes:
        largest: largest value of the format.
        dtype: numpy type of the stored values.
    """

    largest: float
    dtype: np.dtype[np.generic]

    def rounded(self, values: Array) -> Array:
        """``values``, clipped and rounded to values of the format."""
        clipped = np.clip(values, -self.largest, self.largest)
        if self.dtype == np.int8:
            return np.rint(clipped)
        return clipped.astype(self.dtype).astype(np.float32)


NUMBERS = {
    # Without -128, the range is symmetric and does not need a zero point.
    "int8": Number(127.0, np.dtype(np.int8)),
    "fp8": Number(448.0, np.dtype(ml_dtypes.float8_e4m3fn)),
}


def linear_layers(model: EoMT) -> dict[str, nn.Linear]:
    """The layers that can be quantised: all linear layers of the blocks, by module name."""
    return {
        f"backbone.{name}": module
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear)
    }


def observe(
    model: EoMT,
    inputs: Sequence[npt.NDArray[np.uint8]],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Activations]:
    """Run the network, on a GPU if there is one, and record the inputs of each linear layer of its
    blocks.

    Args:
        model: folded FP32 network.
        inputs: network inputs of each image, uint8 [N, H, W, 3]; at least one.
        progress: called with a progress message for each image.
    """
    layers = linear_layers(model)
    count = sum(len(images) for images in inputs)
    width = sum(layer.in_features for layer in layers.values())
    tokens = min(TOKENS, KEPT_BYTES // (4 * width))
    quota = max(1, tokens // count)
    lowest = {name: np.zeros(layer.in_features, np.float32) for name, layer in layers.items()}
    highest = {name: values.copy() for name, values in lowest.items()}
    kept: dict[str, list[Array]] = {name: [] for name in layers}
    rng = np.random.default_rng(0)

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for values in arguments[0]:  # [tokens, D]
                np.fmin(lowest[name], values.amin(0).cpu().numpy(), out=lowest[name])
                np.fmax(highest[name], values.amax(0).cpu().numpy(), out=highest[name])
                chosen = rng.choice(len(values), min(quota, len(values)), replace=False)
                kept[name].append(values[torch.from_numpy(np.sort(chosen))].cpu().numpy())

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with fused_attention(model), on_gpu(model) as device, torch.inference_mode():
            for index, images in enumerate(inputs):
                progress(f"calibrating (image {index + 1} of {len(inputs)})")
                model(torch.from_numpy(images).to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Activations(np.concatenate(kept[name]), lowest[name], highest[name])
        for name in layers
    }


def smoothing_scales(activations: Activations, weight: Array, strength: float) -> Array:
    """SmoothQuant scales (arXiv 2211.10438, eq. 4): divisors of the input channels, float32 [D].

    The weights are multiplied by the same scales.

    Args:
        activations: inputs of the layer.
        weight: [out, D].
        strength: part of the range that moves from the inputs to the weights, 0 to 1.
    """
    of_weights = np.abs(weight).max(0)
    scales = activations.largest**strength / np.maximum(of_weights, 1e-8) ** (1 - strength)
    # Channels that are always 0 are not scaled.
    scales[(activations.largest == 0) | (of_weights == 0)] = 1
    clipped: Array = np.clip(scales, 1 / LARGEST_SCALE, LARGEST_SCALE).astype(np.float32)
    return clipped


def activation_range(activations: Activations, method: Method, number: Number) -> float:
    """Magnitude that maps to the largest value of the format; larger inputs are clipped."""
    full_range = float(activations.largest.max())
    if method == "minmax" or full_range == 0:
        return full_range
    values = np.abs(activations.samples).ravel()
    if method == "percentile":
        return float(np.percentile(values, PERCENTILE))
    if method == "entropy":
        return min(full_range, _entropy_range(activations.samples, number))
    return _smallest_error(values, full_range, number)


def _smallest_error(values: Array, full_range: float, number: Number) -> float:
    """The range with the smallest squared error."""
    if len(values) > 500_000:
        values = np.random.default_rng(0).choice(values, 500_000, replace=False)
    errors = []
    for clip in CLIPS:
        scale = clip * full_range / number.largest
        errors.append(float(np.square(number.rounded(values / scale) * scale - values).sum()))
    return float(CLIPS[int(np.argmin(errors))] * full_range)


def _entropy_range(samples: Array, number: Number) -> float:
    """The range with the smallest loss of information, from ONNX Runtime's entropy search."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method="entropy",
        symmetric=True,
        num_bins=HISTOGRAM_BINS,
        num_quantized_bins=int(number.largest) + 1,
        percentile=PERCENTILE,
        scenario="same",
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the collector prints messages
        collector.collect({"x": [samples]})
        low, high = collector.compute_collection_result()["x"][:2]
    return float(max(abs(float(low)), abs(float(high))))
