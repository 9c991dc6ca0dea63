"""Small networks of every family, with random weights, as the files that an export writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eomt_deploy import __version__
from eomt_deploy.architecture import Architecture
from eomt_deploy.classes import make_classes
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.aotinductor import export_package
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import QuantizedLayer, insert_qdq, quantize_layers
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.folds import fold
from eomt_deploy.precision import QUANTIZED
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_images
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, Backbone, ModelSpec, Task
from eomt_deploy.support.families import CLASSES, FAMILIES

SIZE = (64, 64)
NAMES = [{"name": f"class {number}", "thing": number < 3} for number in range(CLASSES)]


def make_network(arch: Architecture) -> EoMT:
    """A network whose random weights give confident classes and masks with structure."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EoMT(arch, SIZE).eval().requires_grad_(False)
        for name, value in network.named_parameters():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            elif ("norm" in name and name.endswith("weight")) or "gamma" in name:
                value.uniform_(0.5, 1)
            else:
                value.normal_(std=0.1)
        network.class_head.weight.mul_(12)
        network.pixel_mean.fill_(0.45)
        network.pixel_std.fill_(0.22)
    return network


def describe_network(arch: Architecture, task: Task, precision: str) -> ModelSpec:
    """The description that an export of the network has."""
    backbone = Backbone(
        arch.family, arch.width, arch.depth, arch.heads, arch.mlp, arch.registers, 0
    )
    return ModelSpec(
        name="support", task=task, image_size=SIZE, patch_size=arch.patch_size,
        num_queries=arch.num_queries, num_blocks=arch.num_blocks, num_upscale=arch.num_upscale,
        classes=make_classes(NAMES, "support"), resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task], backbone=backbone, precision=precision, batch=None,
        provenance={"eomt_deploy": __version__},
    )  # fmt: skip


def write_model(family: str, task: Task, precision: str, path: Path) -> None:
    """Write the network of a family, with the steps of an export.

    Args:
        family: one of :data:`~eomt_deploy.support.families.FAMILIES`.
        task: task of the model.
        precision: precision of the model.
        path: ``.onnx`` or ``.pt2`` file.

    Raises:
        EomtDeployError: the file cannot be written; for a ``.pt2``, it is also verified.
    """
    arch = FAMILIES[family]
    network, spec = make_network(arch), describe_network(arch, task, precision)
    images = [Path(image) for image in built_in_images()]

    def quantize(folded: EoMT) -> dict[str, QuantizedLayer]:
        read = Processor(spec).preprocess
        activations = observe(folded, [np.concatenate([read(image)[0] for image in images])])
        return quantize_layers(folded, activations, precision, "minmax")

    if path.suffix == ".pt2":
        quantized = precision in QUANTIZED
        config = ExportConfig(
            "support", path, task, precision=precision, device="cpu",
            calibrate=images[0].parent if quantized else None,
        )  # fmt: skip
        export_package(
            config, network, spec, images, lambda _: None, quantize=quantize if quantized else None
        )
        return
    network = fold(network)
    model = describe(graph.trace(network, spec), spec)
    if precision in QUANTIZED:
        layers = quantize(network)
        model = insert_qdq(model, layers, layers)
    if precision != "fp32":
        model = describe(lower(model, Lowering(precision)), spec)
    graph.save(model, spec, path.parent, path.name)
