"""Why FP16 gives NaN, told before it does: the largest magnitude of every tensor.

The FP32 graph runs on calibration images with a probe on every computed tensor. Whatever leaves
FP16's range, or comes close to it, names the nodes that must stay FP32: its *islands*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from eomt_deploy.artifact import parse_spec
from eomt_deploy.backends.emulation.engine import FLOAT, LAYOUT
from eomt_deploy.backends.emulation.partwise import PartwiseSession
from eomt_deploy.exporting.roles import Role, role_of

FP16_MAX = 65504.0
HEADROOM = 4.0
"""A tensor within this factor of the limit counts as close: other images will be larger."""
WEIGHT_LOSS = 4e-3
"""Relative RMS error from which FP16 does not resolve a weight; plain rounding costs 2e-4."""
BATCH = 4


@dataclass(frozen=True)
class Island:
    """A tensor that FP16 cannot hold, and with it the nodes around that stay FP32.

    Attributes:
        tensor: its name.
        role: what the node that makes or reads it is for.
        magnitude: largest absolute value seen.
        reason: ``overflows``, ``comes close`` or ``loses precision``.
        nodes: names of the nodes that stay FP32 for it.
    """

    tensor: str
    role: Role
    magnitude: float
    reason: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tensor} {self.reason} in FP16 (largest {self.magnitude:.3g})"


def measure_ranges(
    model: ir.Model,
    inputs: Iterable[npt.NDArray[np.uint8]],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Largest magnitude of every computed tensor, by name.

    Args:
        model: FP32 graph with its description inside.
        inputs: network inputs, uint8 [N, H, W, 3] each.
        progress: told how many images were seen.
    """
    probed = model.clone()
    graph = probed.graph
    names = []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == FLOAT and node.op_type not in LAYOUT:
                names.append(str(value.name))
                for operator in ("ReduceMax", "ReduceMin"):
                    _probe(graph, value, operator)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = PartwiseSession(probed, options)
    outputs = [f"{name}.{operator}" for name in names for operator in ("ReduceMax", "ReduceMin")]
    largest = np.zeros(len(names))
    fixed = parse_spec(model.metadata_props, Path("the graph")).batch
    batch = fixed or BATCH
    for index, images in enumerate(inputs):
        progress(f"measuring ranges ({index + 1} inputs)")
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            if fixed and len(part) < fixed:  # repeated images change no maximum
                part = np.resize(part, (fixed, *part.shape[1:]))
            found = np.abs(np.array(session.run(outputs, {"images": part})).reshape(-1, 2)).max(1)
            largest = np.fmax(largest, found)
    return dict(zip(names, largest.tolist(), strict=True))


def _probe(graph: ir.Graph, value: ir.Value, operator: str) -> None:
    node = ir.node(operator, [value], {"keepdims": 0}, name=f"{value.name}.{operator}")
    output = node.outputs[0]
    output.name = f"{value.name}.{operator}"
    output.type = ir.TensorType(FLOAT)
    output.shape = ir.Shape([])
    producer = value.producer()
    assert producer is not None  # only computed tensors are probed
    graph.insert_after(producer, node)  # not at the end: the tensor is dropped sooner
    graph.outputs.append(output)


def find_islands(
    model: ir.Model, ranges: Mapping[str, float], *, headroom: float = HEADROOM
) -> list[Island]:
    """What must stay FP32, in the order of the graph.

    Args:
        model: annotated FP32 graph.
        ranges: largest magnitude by tensor, see :func:`measure_ranges`.
        headroom: see :data:`HEADROOM`.
    """
    islands = []
    for node in model.graph:
        for value in node.outputs:
            magnitude = ranges.get(str(value.name))
            if magnitude is None or magnitude * headroom <= FP16_MAX:
                continue
            reason = "overflows" if magnitude > FP16_MAX else "comes close to overflow"
            nodes = (node, *_readers(value))
            islands.append(_island(str(value.name), node, magnitude, reason, nodes))
    for value in model.graph.initializers.values():
        if value.dtype == FLOAT and value.const_value is not None and value.uses():
            array = value.const_value.numpy()
            magnitude = float(np.abs(array).max(initial=0))
            reason = _weight_problem(array, magnitude, headroom)
            if reason:
                readers = _readers(value)
                islands.append(_island(str(value.name), readers[0], magnitude, reason, readers))
    return islands


def _weight_problem(array: npt.NDArray[np.float32], magnitude: float, headroom: float) -> str:
    if magnitude > FP16_MAX:
        return "overflows"
    if magnitude * headroom > FP16_MAX:
        return "comes close to overflow"
    error = (array.astype(np.float16) - array).ravel()
    values = array.ravel()
    lost = sum(float(np.square(part, dtype=np.float64).sum()) for part in _chunks(error))
    norm = sum(float(np.square(part, dtype=np.float64).sum()) for part in _chunks(values))
    return "loses precision" if lost > WEIGHT_LOSS**2 * norm else ""


def _chunks(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Parts whose float64 copies are small."""
    return np.array_split(values, max(1, len(values) >> 22))


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that compute with ``value``, seen through those that only move it."""
    found: list[ir.Node] = []
    for node in value.consumers():
        if node.op_type in LAYOUT:
            for output in node.outputs:
                found += _readers(output)
        else:
            found.append(node)
    return found


def _island(
    tensor: str, owner: ir.Node, magnitude: float, reason: str, nodes: Sequence[ir.Node]
) -> Island:
    names = tuple(dict.fromkeys(str(node.name) for node in nodes))
    return Island(tensor, role_of(owner), magnitude, reason, names)
