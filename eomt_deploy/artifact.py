"""What an exported file says of itself, read without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.errors import ArtifactError
from eomt_deploy.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    import onnx

EXTERNAL_SUFFIX = ".data"
"""Weights of models too large for one protobuf stand in ``<model>.onnx.data``."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of a graph input or output; free sizes are words."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Artifact:
    """Facts of an exported file: description, graph, size."""

    path: Path
    spec: ModelSpec
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]
    bytes: int


def parse_spec(metadata: Mapping[str, str], path: Path) -> ModelSpec:
    """The description in an ONNX file's metadata.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    if METADATA_KEY not in metadata:
        raise ArtifactError(
            f"{path} was not written by eomt-deploy: its metadata has no {METADATA_KEY}.",
            why="Classes, task and sizes travel inside the file; without them nothing is exact.",
            fix="Export the checkpoint: eomt-deploy export CHECKPOINT -o model.onnx",
        )
    return ModelSpec.from_json(metadata[METADATA_KEY])


def read_artifact(path: str | Path) -> Artifact:
    """Describe an exported ``.onnx`` file; weights in a side file are not read.

    Raises:
        ArtifactError: no such file, not ONNX, or not written by eomt-deploy.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ArtifactError(f"{path} is not an .onnx file.")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    except (DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not an ONNX model, or it is damaged.", fix="Export or copy it again."
        ) from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    external = path.with_name(path.name + EXTERNAL_SUFFIX)
    return Artifact(
        path=path,
        spec=parse_spec(metadata, path),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        inputs=tuple(_tensor(value) for value in model.graph.input),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        bytes=path.stat().st_size + (external.stat().st_size if external.is_file() else 0),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorInfo(value.name, dtype, shape)
