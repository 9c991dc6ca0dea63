"""Runs a graph that does not fit in memory in parts, each loaded only while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from eomt_deploy.errors import ModelFileError

Arrays = Mapping[str, npt.NDArray[np.generic]]

MAX_LOADED_BYTES = 1_500_000_000
"""Maximum weights of a graph that stays loaded; a protobuf message holds less than 2 GiB."""
PART_BYTES = 256_000_000
"""Maximum weights of a part of a larger graph, unless a single node has more."""


@dataclass(frozen=True)
class _Part:
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]


class PartwiseSession:
    """Like ``onnxruntime.InferenceSession`` on the CPU, for a graph in memory. Not thread-safe.

    Args:
        model: graph with topologically sorted nodes; weights may be lazy or in a side file.
        options: session options of every part.
        max_loaded: maximum bytes of weights of a graph that stays loaded.
        part: maximum bytes of weights per part of a larger graph.
    """

    def __init__(
        self,
        model: ir.Model,
        options: ort.SessionOptions,
        *,
        max_loaded: int = MAX_LOADED_BYTES,
        part: int = PART_BYTES,
    ) -> None:
        self._opset = model.graph.opset_imports[""]
        self._ir_version = model.ir_version
        self._options = options
        self._parts = _cut(model.graph, max_loaded, part)
        only = len(self._parts) == 1
        self._kept = self._load(self._parts[0]) if only else None

    def run(self, outputs: Sequence[str], feeds: Arrays) -> list[npt.NDArray[np.generic]]:
        """Compute the named outputs of the graph."""
        known = dict(feeds)
        for index, part in enumerate(self._parts):
            session = self._kept or self._load(part)
            names = [str(value.name) for value in part.outputs]
            given = {str(value.name): known[str(value.name)] for value in part.inputs}
            found = session.run(names, given)
            del session
            known |= dict(zip(names, found, strict=True))
            needed = {str(v.name) for later in self._parts[index + 1 :] for v in later.inputs}
            known = {k: v for k, v in known.items() if k in needed or k in outputs}
        return [known[name] for name in outputs]

    def _load(self, part: _Part) -> ort.InferenceSession:
        return ort.InferenceSession(
            self._serialized(part), self._options, providers=["CPUExecutionProvider"]
        )

    def _serialized(self, part: _Part) -> bytes:
        graph = onnx.helper.make_graph(
            nodes=[ir.serde.serialize_node(node) for node in part.nodes],
            name="part",
            inputs=[ir.serde.serialize_value(value) for value in part.inputs],
            outputs=[ir.serde.serialize_value(value) for value in part.outputs],
            initializer=[_serialized_weight(value) for value in part.weights],
        )
        opset = onnx.helper.make_opsetid("", self._opset)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=self._ir_version)
        serialized: bytes = model.SerializeToString()
        return serialized


def _serialized_weight(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None  # initializers have values
    proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype, dims=tensor.shape.numpy())
    proto.raw_data = tensor.tobytes()
    release(tensor)
    return proto


def release(tensor: ir.TensorProtocol) -> None:
    """Release the side file of a tensor, which otherwise stays mapped in memory."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def check_side_files(graph: ir.Graph) -> None:
    """Check the side files in advance: their weights are read only when they are used.

    Raises:
        ModelFileError: a side file is missing or truncated.
    """
    ends: dict[Path, int] = {}
    for value in graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            path = Path(tensor.path)
            ends[path] = max(ends.get(path, 0), (tensor.offset or 0) + (tensor.length or 0))
    for path, end in ends.items():
        size = path.stat().st_size if path.is_file() else None
        if size is None or size < end:
            raise ModelFileError(
                f"{path} is missing."
                if size is None
                else f"{path} is truncated: it has {size:,} of {end:,} bytes.",
                why="It contains the weights of the .onnx file beside it.",
                fix="Copy both files again, or export the model again.",
            )


def _cut(graph: ir.Graph, max_loaded: int, part: int) -> list[_Part]:
    nodes = list(graph)
    sizes = {value: value.const_value.nbytes for value in graph.initializers.values()
             if value.const_value is not None}  # fmt: skip
    limit = part if sum(sizes.values()) > max_loaded else math.inf
    groups: list[list[ir.Node]] = [[]]
    held: set[ir.Value] = set()  # weights of the current group, which its nodes may share
    for node in nodes:
        read = {value for value in node.inputs if value in sizes}
        if groups[-1] and sum(sizes[value] for value in held | read) > limit:
            groups.append([])
            held = set()
        groups[-1].append(node)
        held |= read
    place = {node: index for index, group in enumerate(groups) for node in group}
    return [_part(graph, group, index, place) for index, group in enumerate(groups)]


def _part(graph: ir.Graph, nodes: list[ir.Node], index: int, place: Mapping[ir.Node, int]) -> _Part:
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    made = [value for node in nodes for value in node.outputs]
    wanted = set(graph.outputs)
    return _Part(
        nodes=tuple(nodes),
        inputs=tuple(
            value
            for value in read
            if not value.is_initializer()
            and ((maker := value.producer()) is None or place[maker] < index)
        ),
        outputs=tuple(
            value
            for value in made
            if value in wanted or any(place[node] > index for node in value.consumers())
        ),
        weights=tuple(value for value in read if value.is_initializer()),
    )
