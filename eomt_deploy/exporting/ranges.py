"""Range analysis: tensors that would overflow or lose precision in FP16.

The FP32 graph runs on calibration images, and the largest magnitude of each tensor is measured. If
it exceeds the FP16 range, or comes close to it, the nodes around this tensor stay in FP32. Such an
FP32 exception is called an *island*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from eomt_deploy.backends.emulation.engine import FLOAT, LAYOUT
from eomt_deploy.backends.emulation.partwise import PartwiseSession
from eomt_deploy.exporting.roles import Role, role_of
from eomt_deploy.model_file import parse_spec

FP16_MAX = 65504.0
HEADROOM = 4.0
"""Safety factor: a tensor stays in FP32 if it would overflow with values this much larger."""
WEIGHT_LOSS = 4e-3
"""Maximum relative RMS error of a weight in FP16; normal rounding causes 2e-4."""
BATCH = 4


@dataclass(frozen=True)
class Island:
    """A tensor that FP16 cannot represent, and the nodes that stay in FP32 because of it.

    Attributes:
        tensor: name of the tensor.
        role: role of the node that computes it (of a weight: that reads it).
        magnitude: largest magnitude.
        reason: ``overflows``, ``comes close to overflow`` or ``loses precision``.
        nodes: names of the nodes that stay in FP32.
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
    """Largest magnitude of each computed tensor, by name.

    Args:
        model: FP32 graph that contains its description.
        inputs: network inputs of each image, uint8 [N, H, W, 3].
        progress: called with a progress message for each image.
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
    # The default order runs many probes at the end and keeps their tensors until then: seven times
    # the memory.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    session = PartwiseSession(probed, options)
    outputs = [f"{name}.{operator}" for name in names for operator in ("ReduceMax", "ReduceMin")]
    largest = np.zeros(len(names))
    fixed = parse_spec(model.metadata_props, Path("the graph")).batch
    batch = fixed or BATCH
    for index, images in enumerate(inputs):
        progress(f"measuring ranges (input {index + 1})")
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            if fixed and len(part) < fixed:  # repeated images do not change the maximum
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
    graph.insert_after(producer, node)  # not at the end, so that the tensor is freed earlier
    graph.outputs.append(output)


def find_islands(
    model: ir.Model, ranges: Mapping[str, float], *, headroom: float = HEADROOM
) -> list[Island]:
    """The tensors that FP16 cannot represent: computed ones in graph order, then weights.

    Args:
        model: annotated FP32 graph.
        ranges: largest magnitude of each tensor, from :func:`measure_ranges`.
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
    """``values`` in parts, so that float64 copies stay small."""
    return np.array_split(values, max(1, len(values) >> 22))


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that compute with ``value``, directly or after layout nodes such as Reshape."""
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
