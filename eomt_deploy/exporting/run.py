"""The whole export: read, build, fold, trace, lower, verify, publish."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from eomt_deploy.backends import BACKENDS, choose_backend, open_engine
from eomt_deploy.cache import keep_files_of_torch
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.evaluation.truth import Dataset, Sample, unlabelled
from eomt_deploy.exporting import conversion, describe, graph, pareto, verify
from eomt_deploy.exporting.aotinductor import export_package
from eomt_deploy.exporting.config import PACKAGE, ExportConfig
from eomt_deploy.exporting.network import build_network
from eomt_deploy.exporting.ranges import Island
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.exporting.verdict import Judge, Verdict
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.image_search import FoundImages, search_images
from eomt_deploy.network.folds import fold
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import QUANTIZED
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_photos, readable_images
from eomt_deploy.spec import ModelSpec

T = TypeVar("T")

STREAMED_BYTES = 2_000_000_000
"""Checkpoints beyond this size are exported a block at a time."""
CALIBRATION_IMAGES = 128
JUDGED_IMAGES = 128
SHOWN_ISLANDS = 8
HELD_OUT = 4
"""Every fourth image of a calibration folder is kept for the verdict."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the checkpoint."""

    files: tuple[Path, ...]
    spec: ModelSpec
    verification: verify.Verification
    warnings: tuple[str, ...]
    islands: tuple[Island, ...] = ()
    verdict: Verdict | None = None


def export(config: ExportConfig, progress: Callable[[str], None] = lambda _: None) -> ExportReport:
    """Export a checkpoint to a verified, self-describing ONNX file or AOTInductor package.

    Args:
        config: what to export, and how.
        progress: told each step in words.

    Raises:
        CheckpointError: the checkpoint cannot be read, or was not annealed.
        UsageError: something that only the user knows is missing or contradicts.
        VerificationError: the export does not agree with the checkpoint; nothing is written.
        OutputError: the output cannot be written.
        MissingDependencyError: no run-time to verify with is installed.
    """
    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    choose_backend(config.output, None)  # verification will need it: say so now
    verifying = search_images([config.verify_images] if config.verify_images else built_in_photos())
    calibrating = search_images([config.calibrate]) if config.calibrate else None
    keep_files_of_torch()
    progress("reading the checkpoint")
    source = describe.find_source(config)
    checkpoint = read_checkpoint(
        source.location,
        heads=config.heads,
        num_blocks=config.num_blocks,
        base_weights=config.base_weights,
        weights_key=config.weights_key,
        insecure=config.insecure,
    )
    describe.check_annealed(checkpoint, config.allow_unannealed)
    if config.native_size:
        grid = describe.native_grid(config.native_size, checkpoint)
        checkpoint = replace(checkpoint, native_grid=grid)
    spec = describe.describe(config, source, checkpoint)
    notes = describe.warnings(config, source, checkpoint, spec)
    processor = Processor(spec)
    images = usable(verifying, "verification", processor, notes)
    photos = images
    if calibrating:
        photos = usable(calibrating, "calibration", processor, notes, HELD_OUT * JUDGED_IMAGES)
    progress(f"building the network at {spec.image_size[0]}x{spec.image_size[1]}")
    package = config.output.suffix.lower() == PACKAGE
    # What is quantised, or compiled, is needed whole.
    stream = checkpoint.bytes > STREAMED_BYTES and not package and config.precision not in QUANTIZED
    reference = build_network(checkpoint, spec.image_size, stream=stream)
    if package:
        spec, result = export_package(config, reference, spec, images, progress)
        return ExportReport((config.output,), spec, result, tuple(notes))

    if config.budget is not None:
        pareto.check_matplotlib()
    judge = dataset = None
    if config.precision in QUANTIZED:
        dataset = open_dataset(list(config.data), spec) if config.data else None
        photos, samples, note = split(photos, dataset)
        notes += note
        judge = Judge(NetworkEngine(reference, spec), samples, bool(dataset), progress)
    inputs = (
        [processor.preprocess(photo)[0] for photo in spread(photos, CALIBRATION_IMAGES)]
        if config.precision not in ("fp32", "bf16")
        else []
    )
    made = conversion.build_graph(
        fold(copy.deepcopy(reference)), spec, config, inputs, judge, progress
    )
    if dataset:
        notes += dataset.remarks()
    notes += [f"{island}: kept in FP32." for island in made.islands[:SHOWN_ISLANDS]]
    if len(made.islands) > SHOWN_ISLANDS:
        notes.append(
            f"{len(made.islands) - SHOWN_ISLANDS} more tensors are kept in FP32; `eomt-deploy "
            "inspect` lists them."
        )
    if made.unfused:
        notes.append(
            f"The attention of {made.unfused} blocks stays written out: a part of it is FP32."
        )
    if config.attention == "fused" and made.spec.precision == "fp32":
        notes.append("TensorRT-RTX builds fused attention in FP16 and BF16 only, not in FP32.")
    if made.spec.precision != config.precision:
        notes.append(
            f"No layer could be {config.precision}: all are kept high by --budget or --high. This "
            f"is an {made.spec.precision} model."
        )
    with staging_folder(config.output) as folder:
        progress("writing the graph")
        files = graph.save(made.model, made.spec, folder, config.output.name)
        # Real FP16 and BF16 arithmetic is on the GPU: here its roundings are made by hand, and
        # graphs that are larger than the memory run part by part.
        backend = _verifier() if config.precision == "fp32" and not stream else "emulation"
        with open_engine(files[-1], backend=backend, device="cpu") as engine:
            result = verify.compare(engine, reference, images, progress)
        verify.check(result, made.spec.precision)
        if made.verdict and config.budget is not None:
            files = [*pareto.write_front(made.verdict, folder / config.output.name), *files]
        graph.publish(files, config.output)
    return ExportReport(
        files=tuple(config.output.with_name(file.name) for file in files),
        spec=made.spec,
        verification=result,
        warnings=tuple(notes),
        islands=made.islands,
        verdict=made.verdict,
    )


def usable(
    found: FoundImages,
    purpose: str,
    processor: Processor,
    notes: list[str],
    limit: int | None = None,
) -> list[Path]:
    """The images that can be read, of at most ``limit``; what is left out is added to the notes.

    Raises:
        ImageError: too few are left, see :func:`readable_images`.
    """
    paths = spread(found.paths, limit or len(found.paths))
    readable, unreadable = readable_images(paths, purpose, processor.preprocess)
    notes += unreadable
    if found.note:
        notes.append(f"Images for {purpose}: {found.note}.")
    return readable


def _verifier() -> str | None:
    """ONNX Runtime where it is installed: another one would keep what it compiled."""
    return "onnxruntime" if BACKENDS["onnxruntime"].installed else None


def split(
    photos: Sequence[Path], dataset: Dataset | None
) -> tuple[list[Path], list[Sample], list[str]]:
    """Images to calibrate on, samples to judge on, and what the user should know of it."""
    if dataset:
        return list(photos), spread(dataset.samples, JUDGED_IMAGES), list(dataset.notes)
    judged = list(photos[HELD_OUT - 1 :: HELD_OUT])
    if not judged:
        note = (
            f"Only {len(photos)} calibration images: the verdict is made on the same ones and "
            "flatters. Pass at least 4, better 100."
        )
        return list(photos), list(unlabelled(photos)), [note]
    rest = [photo for index, photo in enumerate(photos) if index % HELD_OUT != HELD_OUT - 1]
    return rest, list(unlabelled(spread(judged, JUDGED_IMAGES))), []


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spread over all."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
