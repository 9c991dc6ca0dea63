"""Layers and their precisions, read from the parsed network or from the engine.

The types of the tensors of a strongly typed network are fixed, so the precision is known without a
GPU. With a GPU it is read from the engine's inspector.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eomt_deploy.precision import PRECISIONS, QUANTIZED, wider

# DataType of the library -> precision.
TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
HEAVY_TYPES = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_INPUT")
"""Layers that take most of the time; the type of their inputs is the engine's precision."""
# Type names of the inspector, in this order: "bfloat16" contains "float16" contains "float".
WORDS = (
    ("int8", ("int8",)),
    ("fp8", ("fp8", "float8", "e4m3")),
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("half", "fp16", "float16")),
    ("fp32", ("float", "fp32")),
)
HEAVY_WORDS = ("gemm", "conv", "matmul", "matrixmultiply", "mha", "attention", "correlation")
HEAVY_TACTICS = ("gemm", "fprop", "dgrad", "mha")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: name of the layer.
        type: type of the layer, as named by the library.
        precision: for a heavy layer the type of its inputs (the quantised type if they come from
            Q/DQ), otherwise the type of its first output.
        heavy: whether it is a matrix product or a convolution.
    """

    name: str
    type: str
    precision: str
    heavy: bool


@dataclass(frozen=True)
class LayerReport:
    """All layers, from the ``network`` before the build or from the ``engine`` after it."""

    source: Literal["network", "engine"]
    layers: tuple[Layer, ...]

    @property
    def heavy(self) -> Mapping[str, int]:
        """Number of heavy layers by precision, the most frequent first."""
        return dict(Counter(x.precision for x in self.layers if x.heavy).most_common())

    @property
    def precision(self) -> str | None:
        """Precision of most heavy layers; None if there are no heavy layers.

        Quantisation keeps many layers in higher precision on purpose, so one quantised layer is
        enough.
        """
        quantized = {name: count for name, count in self.heavy.items() if name in QUANTIZED}
        return next(iter(quantized or self.heavy), None)

    @property
    def higher(self) -> tuple[str, ...]:
        """Names of the heavy layers that compute in a wider type than the engine's precision."""
        if self.precision is None or self.precision not in PRECISIONS:
            return ()
        return tuple(
            x.name for x in self.layers if x.heavy and x.precision in wider(self.precision)
        )

    def table(self) -> list[tuple[str, str, int]]:
        """(type, precision, number of layers), the most frequent first."""
        counts = Counter((x.type, x.precision) for x in self.layers)
        return [(*key, count) for key, count in counts.most_common()]


def read_network(network: Any) -> LayerReport:
    """Read the layers of a parsed ``INetworkDefinition``."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {x.get_output(j).name: x for x in layers for j in range(x.num_outputs)}
    return LayerReport("network", tuple(_network_layer(x, producers) for x in layers))


def _network_layer(layer: Any, producers: Mapping[str, Any]) -> Layer:
    kind = layer.type.name
    heavy = kind in HEAVY_TYPES
    if not heavy:
        precision = _type(layer.get_output(0)) if layer.num_outputs else ""
        return Layer(layer.name, kind, precision, heavy=False)
    inputs = [layer.get_input(j) for j in range(min(2, layer.num_inputs))]
    stored = [_stored_type(tensor, producers) for tensor in inputs]
    # If only the weights are quantised, the layer still computes in the type of its other input.
    quantized = len(stored) == 2 and stored[0] == stored[1] and stored[0] in QUANTIZED
    return Layer(layer.name, kind, stored[0] if quantized else _type(inputs[0]), heavy=True)


def _stored_type(tensor: Any, producers: Mapping[str, Any]) -> str:
    """Type before a DequantizeLinear, also through reshapes; otherwise the tensor's own type."""
    start = tensor
    while tensor is not None and tensor.name in producers:
        layer = producers[tensor.name]
        if layer.type.name == "DEQUANTIZE":
            return _type(layer.get_input(0))
        if layer.type.name != "SHUFFLE":
            break
        tensor = layer.get_input(0)
    return _type(start)


def _type(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return TYPES.get(name, name.lower())


def read_inspector(text: str) -> LayerReport | None:
    """Read the layers from the JSON of an engine inspector (TensorRT 10 and 11).

    Returns:
        None if the JSON has no heavy layer with a known type.
    """
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    layers = tuple(_inspected(entry) for entry in entries if isinstance(entry, dict))
    if not any(x.heavy and x.precision in PRECISIONS for x in layers):
        return None
    return LayerReport("engine", layers)


def _inspected(entry: Mapping[str, Any]) -> Layer:
    kind, tactic = str(entry.get("LayerType", "")), str(entry.get("TacticName", ""))
    # Names of generated kernels list the fused layers: "__myl_Conv…" may be only a conversion.
    named = not tactic.startswith("__myl") and any(w in tactic.lower() for w in HEAVY_TACTICS)
    heavy = named or any(word in kind.lower() for word in HEAVY_WORDS)
    tensors = entry.get("Inputs" if heavy else "Outputs") or []
    found = [_inspected_type(x) for x in tensors if isinstance(x, dict)]
    known = [x for x in found if x in PRECISIONS]
    # The type of a fused bias or residual may be wider than the types of the factors.
    precision = max(known, key=tuple(PRECISIONS).index) if heavy and known else (found or [""])[0]
    return Layer(str(entry.get("Name", "")), kind, precision, heavy)


def _inspected_type(tensor: Mapping[str, Any]) -> str:
    """TensorRT 10 has "Format/Datatype": "Half" or a sentence with the type, 11 has "DataType"."""
    keys = ("DataType", "Datatype", "Format/DataType", "Format/Datatype", "Format")
    said = next((str(tensor[key]) for key in keys if key in tensor), "").lower()
    return next((name for name, words in WORDS if any(w in said for w in words)), said)
