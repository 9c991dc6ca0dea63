"""Which layers there are and what they compute in: of the parsed network, or of the engine.

A strongly typed network keeps the types of its tensors, so it tells the precision without a GPU.
With one, the engine's own inspector is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eomt_deploy.precision import PRECISIONS, QUANTIZED, wider

# DataType of the library -> our word.
TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
HEAVY_TYPES = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_INPUT")
"""Layers that take the time; their inputs' type is the engine's precision."""
# The inspector's words, tried in this order: "bfloat16" holds "float16" holds "float".
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
    """One layer: its type in the library's words, and what it computes in.

    Attributes:
        precision: type of the inputs of a heavy layer (through Q/DQ: what it is quantised to),
            else of the first output.
        heavy: a matrix product or a convolution.
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
        """Heavy layers by precision, most first."""
        return dict(Counter(x.precision for x in self.layers if x.heavy).most_common())

    @property
    def precision(self) -> str | None:
        """What most heavy layers compute in; None when there are no heavy layers.

        Quantisation leaves much of a graph high on purpose, so one quantised layer is enough.
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
        """(type, precision, how many), most first."""
        counts = Counter((x.type, x.precision) for x in self.layers)
        return [(*key, count) for key, count in counts.most_common()]


def read_network(network: Any) -> LayerReport:
    """Layers of a parsed ``INetworkDefinition``."""
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
    # Weights alone in 8 bit save memory, but the layer still computes in its other input's type.
    quantized = len(stored) == 2 and stored[0] == stored[1] and stored[0] in QUANTIZED
    return Layer(layer.name, kind, stored[0] if quantized else _type(inputs[0]), heavy=True)


def _stored_type(tensor: Any, producers: Mapping[str, Any]) -> str:
    """Type before a DequantizeLinear, seen through reshapes; else the tensor's own type."""
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
    """Layers of an engine inspector's JSON (TensorRT 10 and 11).

    Returns:
        None when it names no heavy layer with its type: the engine does not tell.
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
    # Names of generated kernels list what was fused: "__myl_Conv…" may be a mere type conversion.
    named = not tactic.startswith("__myl") and any(w in tactic.lower() for w in HEAVY_TACTICS)
    heavy = named or any(word in kind.lower() for word in HEAVY_WORDS)
    tensors = entry.get("Inputs" if heavy else "Outputs") or []
    found = [_inspected_type(x) for x in tensors if isinstance(x, dict)]
    known = [x for x in found if x in PRECISIONS]
    # A fused bias or residual may be wider than what is multiplied.
    precision = max(known, key=tuple(PRECISIONS).index) if heavy and known else (found or [""])[0]
    return Layer(str(entry.get("Name", "")), kind, precision, heavy)


def _inspected_type(tensor: Mapping[str, Any]) -> str:
    """TensorRT 10 says "Format/Datatype": "Half" or a sentence with the type, 11 "DataType"."""
    keys = ("DataType", "Datatype", "Format/DataType", "Format/Datatype", "Format")
    said = next((str(tensor[key]) for key in keys if key in tensor), "").lower()
    return next((name for name, words in WORDS if any(w in said for w in words)), said)
