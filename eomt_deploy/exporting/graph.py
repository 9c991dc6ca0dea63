"""Network -> ONNX graph -> file with its description inside."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from eomt_deploy.artifact import EXTERNAL_SUFFIX
from eomt_deploy.exporting.roles import annotate
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.spec import METADATA_KEY, ModelSpec

OPSET = 20
"""First opset with Gelu as an operator; LayerNormalization is there since 17."""
IR_VERSION = 10
"""Read by every run-time since ONNX Runtime 1.18; newer ones add nothing that we use."""
LEAST_IR = {23: 11}
"""Opsets that need a newer one."""
MAX_PROTOBUF_BYTES = 2_000_000_000
"""A protobuf message cannot exceed 2 GiB: larger weights go to a side file."""


def trace(model: EoMT, spec: ModelSpec) -> ir.Model:
    """The FP32 graph of a folded network, with the tensor contract's names and shapes; nodes and
    tensors are named after the network's modules (:mod:`eomt_deploy.exporting.roles`)."""
    example = torch.zeros((spec.batch or 2, *spec.image_size, 3), dtype=torch.uint8)
    dynamic = None if spec.batch else ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # torch's own deprecations, nothing a user can mend
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["class_logits", "mask_logits"],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns it
    traced: ir.Model = program.model
    annotate(traced)
    return traced


def to_proto(model: ir.Model, spec: ModelSpec) -> onnx.ModelProto:
    """The graph as it is written: without traces of the exporter, with its description."""
    graph = ir.to_proto(model)
    graph.ir_version = max(IR_VERSION, LEAST_IR.get(model.graph.opset_imports[""], 0))
    graph.producer_name = "eomt-deploy"
    graph.producer_version = spec.provenance["eomt_deploy"]
    # Paths of this machine, and larger than the graph itself.
    del graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    onnx.helper.set_model_props(graph, {METADATA_KEY: spec.to_json()})
    return graph


def save(
    graph: onnx.ModelProto, folder: Path, name: str, *, limit: int = MAX_PROTOBUF_BYTES
) -> list[Path]:
    """Write ``graph`` into ``folder``; weights beyond ``limit`` bytes go to ``<name>.data``.

    Returns:
        the files written, the one that refers to the others last.
    """
    path = folder / name
    # Not ByteSize(): it fails on the very graphs that are too large.
    if sum(len(tensor.raw_data) for tensor in graph.graph.initializer) <= limit:
        onnx.save(graph, path)
        return [path]
    side = name + EXTERNAL_SUFFIX
    onnx.save(graph, path, save_as_external_data=True, location=side, size_threshold=1024)
    # onnx creates the side file for its owner alone; both files must be readable by the same.
    (folder / side).chmod(path.stat().st_mode)
    return [folder / side, path]


def publish(files: list[Path], target: Path) -> None:
    """Move finished files beside and onto ``target``, the main one last.

    An old model goes first: whenever this stops, no graph stands beside the weights of another.
    """
    if len(files) > 1:
        target.unlink(missing_ok=True)
    for file in files:
        os.replace(file, target.with_name(file.name))
    side = target.with_name(target.name + EXTERNAL_SUFFIX)
    if side.name not in {file.name for file in files}:
        side.unlink(missing_ok=True)  # left by a larger model of the same name


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Errors only from a logger that reports every missing optional package."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
