"""Conversion of the FP32 network to a graph in the requested precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.errors import UsageError
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.attention import fuse_attention
from eomt_deploy.exporting.calibration import linear_layers, observe, smoothing_scales
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import QuantizedLayer, insert_qdq, quantize_layers
from eomt_deploy.exporting.ranges import Island, find_islands, measure_ranges
from eomt_deploy.exporting.roles import ROLES, Role, module_of
from eomt_deploy.exporting.verdict import Judge, Judgement, Verdict, search_blocks
from eomt_deploy.exporting.work import Work, spread
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.folds import fold_smoothing, smoothable
from eomt_deploy.precision import QUANTIZED
from eomt_deploy.spec import METADATA_KEY, ModelSpec
from eomt_deploy.units import counted

Inputs = Sequence[npt.NDArray[np.uint8]]
RANGE_IMAGES, QUICK_RANGE_IMAGES = 8, 2
"""Maximum number of images for the range analysis, which has a safety factor."""


@dataclass(frozen=True)
class PreciseGraph:
    """The graph to write, and facts about its conversion.

    Attributes:
        model: annotated graph that contains its description.
        spec: the description; its provenance lists calibration and FP32 exceptions.
        islands: tensors that FP16 cannot represent.
        verdict: accuracy loss of quantisation; None if no layer is quantised.
        unfused: number of blocks whose attention could not be fused, although it was requested.
    """

    model: ir.Model
    spec: ModelSpec
    islands: tuple[Island, ...] = ()
    verdict: Verdict | None = None
    unfused: int = 0


def build_graph(
    network: EoMT,
    spec: ModelSpec,
    config: ExportConfig,
    inputs: Inputs,
    judge: Judge | None,
    work: Work,
) -> PreciseGraph:
    """Build the graph in the precision of ``config``.

    Args:
        network: folded FP32 network; quantisation changes it in place.
        spec: description of the model.
        config: options of the export.
        inputs: network inputs of each calibration image, uint8 [N, H, W, 3].
        judge: measures the accuracy loss; required for int8 and fp8.
        work: the plan of the export, which receives the progress.

    Raises:
        UsageError: a role or module to keep in FP32 does not exist, or attention cannot be fused.
        VerificationError: logits are NaN or infinite, or the budget cannot be met.
    """
    _check_names(network, config)
    if config.attention == "fused" and network.arch.rope_theta is not None:
        raise UsageError(
            "The attention of a DINOv3 model cannot be exported as one Attention operator.",
            why="It rotates queries and keys (rotary position embeddings).",
            fix="Leave --attention out. Backends also fuse the separate operators.",
        )
    layers: dict[str, QuantizedLayer] = {}
    if config.precision in QUANTIZED:
        layers = calibrate(network, config, inputs, work)
    work.say("tracing the graph")
    model = graph.trace(network, spec)
    describe(model, spec)
    if config.precision == "fp32":
        return PreciseGraph(model, spec, unfused=_fuse(model, config))

    plan, islands = _plan(model, config, spread(inputs, range_images(config.quick)), work)
    layers = _quantizable(layers, model, plan)

    def build(kept: Sequence[int]) -> ir.Model:
        chosen = [name for name in layers if _block(name) not in kept]
        return describe(lower(insert_qdq(model, layers, chosen), plan), spec)

    verdict = None
    if layers:
        assert judge is not None  # run.py makes one for every quantised precision
        judged = judge

        def measure(kept: Sequence[int], limit: int | None) -> Judgement:
            with EmulatedEngine(build(kept)) as candidate:
                return judged(candidate, limit)

        verdict = search_blocks(
            measure,
            sorted({_block(name) for name in layers}),
            lambda kept: _share(layers, kept),
            judge.unit,
            config.budget,
            work.say,
            rank=not config.quick,
        )
    if config.precision in QUANTIZED and not (verdict and verdict.chosen.share):
        spec = replace(spec, precision="fp16")  # the actual precision: no layer is quantised
    spec = replace(spec, provenance={**spec.provenance, **_story(config, inputs, islands, verdict)})
    final = build(verdict.chosen.kept if verdict else ())
    unfused = _fuse(final, config)
    return PreciseGraph(describe(final, spec), spec, tuple(islands), verdict, unfused)


def range_images(quick: bool) -> int:
    """Maximum number of images for the range analysis."""
    return QUICK_RANGE_IMAGES if quick else RANGE_IMAGES


def _fuse(model: ir.Model, config: ExportConfig) -> int:
    return fuse_attention(model) if config.attention == "fused" else 0


def _plan(
    model: ir.Model, config: ExportConfig, inputs: Inputs, work: Work
) -> tuple[Lowering, list[Island]]:
    """What stays in FP32: the choices of the user, and what FP16 cannot represent."""
    roles, modules = _kept_high(config)
    islands: list[Island] = []
    if config.precision != "bf16" and config.islands:  # BF16 has the range of FP32
        islands = find_islands(model, measure_ranges(model, inputs, work.phase("ranges")))
    names = {name for island in islands for name in island.nodes}
    names |= {
        str(node.name)
        for node in model.graph
        if any(f"{module_of(node)}.".startswith(f"{module}.") for module in modules)
    }
    return Lowering(config.precision, roles, names), islands


def _quantizable(
    layers: dict[str, QuantizedLayer], model: ir.Model, plan: Lowering
) -> dict[str, QuantizedLayer]:
    """The layers that do not stay in FP32.

    fc1 and fc2 are quantised together or not at all: TensorRT has returned NaN if only one of them
    was quantised.
    """
    high = {module_of(node) for node in model.graph if plan.wanted(node) != plan.half}
    high |= {f"{name.removesuffix(end)}{other}" for name in high for end, other in (
        ("fc1", "fc2"), ("fc2", "fc1"),
    ) if name.endswith(end)}  # fmt: skip
    return {name: layer for name, layer in layers.items() if name not in high}


def _block(layer: str) -> int:
    """``backbone.blocks.3.attn.qkv`` -> 3."""
    return int(layer.split(".")[2])


def describe(model: ir.Model, spec: ModelSpec) -> ir.Model:
    """Write the description into the metadata of the graph."""
    model.metadata_props[METADATA_KEY] = spec.to_json()
    return model


def calibrate(
    network: EoMT, config: ExportConfig, inputs: Inputs, work: Work
) -> dict[str, QuantizedLayer]:
    """Quantise the linear layers of a folded network; SmoothQuant changes the network in place."""
    activations = observe(network, inputs, work.phase("calibration"))
    if config.smooth:
        linears = linear_layers(network)
        for name in smoothable(network):
            weight = linears[name].weight.numpy()
            scales = smoothing_scales(activations[name], weight, config.smooth)
            fold_smoothing(network, name, torch.from_numpy(scales))
            activations[name] = activations[name].divided(scales)
    work.say("quantising the weights")
    return quantize_layers(
        network, activations, config.precision, config.range_method, smooth=config.smooth
    )


def _kept_high(config: ExportConfig) -> tuple[frozenset[Role], tuple[str, ...]]:
    """Roles and modules that the user keeps in FP32."""
    roles = {role for role in ROLES if role in config.high}
    return frozenset(roles), tuple(name for name in config.high if name not in ROLES)


def _check_names(network: EoMT, config: ExportConfig) -> None:
    """Check that the roles and modules to keep in FP32 exist, before the actual work."""
    known = {*ROLES, *(name for name, _ in network.named_modules() if name)}
    for name in config.high:
        if name not in known:
            raise UsageError(
                f"--high {name}: there is no role or module of this name.",
                fix=f"Use a role ({', '.join(ROLES)}) or a module such as backbone.blocks.0.",
            )


def _share(layers: dict[str, QuantizedLayer], kept: Sequence[int]) -> float:
    """Fraction of the weights of all quantisable layers that is quantised."""
    total = sum(layer.weight.size for layer in layers.values())
    chosen = sum(layer.weight.size for name, layer in layers.items() if _block(name) not in kept)
    return chosen / total


def calibration_story(config: ExportConfig, inputs: Inputs) -> dict[str, str]:
    """Provenance of the scales, for the description in the file."""
    facts = {"images": len(inputs), "method": config.range_method, "smooth": config.smooth}
    return {"calibration": json.dumps(facts)}


def _story(
    config: ExportConfig, inputs: Inputs, islands: Sequence[Island], verdict: Verdict | None
) -> dict[str, str]:
    """Provenance of the precision, for the description in the file."""
    story: dict[str, str] = {}
    if config.high:
        story["kept_fp32"] = ", ".join(config.high)
    if islands:
        story["fp32_islands"] = "; ".join(str(island) for island in islands)
    if verdict:
        story |= calibration_story(config, inputs)
        story["blocks_in_fp16"] = ", ".join(map(str, verdict.chosen.kept)) or "none"
        judged = verdict.chosen.judgement
        story["verdict"] = (
            f"{judged.drop:.3f} points of {verdict.unit} lost on {counted(judged.images, 'image')}"
        )
    return story
