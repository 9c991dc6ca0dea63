"""The complete export: read, build, fold, trace, lower, verify, publish."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eomt_deploy.backends import BACKENDS, choose_backend, open_engine, verification
from eomt_deploy.backends.building import no_progress
from eomt_deploy.cache import keep_files_of_torch
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.evaluation.truth import Dataset, Sample, unlabelled
from eomt_deploy.exporting import conversion, describe, graph, pareto, verify
from eomt_deploy.exporting.aotinductor import export_package
from eomt_deploy.exporting.config import PACKAGE, ExportConfig
from eomt_deploy.exporting.conversion import range_images
from eomt_deploy.exporting.network import build_network
from eomt_deploy.exporting.ranges import Island
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.exporting.verdict import Judge, Verdict, sensitivity_images
from eomt_deploy.exporting.work import EMULATED, PROBED, Progress, Work, duration, spread
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.image_search import FoundImages, search_images
from eomt_deploy.network.folds import fold
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import QUANTIZED
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_images, readable_images
from eomt_deploy.spec import ModelSpec

STREAMED_BYTES = 2_000_000_000
"""Larger checkpoints are exported one block at a time."""
CALIBRATION_IMAGES = 32
"""Maximum number of images to calibrate on. On CamVid, 16, 32 and 69 images give the same label
agreement (99.67 to 99.69%) and mIoU (72.72 to 72.75)."""
JUDGED_IMAGES = 128
QUICK_IMAGES, QUICK_JUDGED, QUICK_VERIFIED = 8, 2, 1
"""Maximum numbers of images with ``quick``: read, judged (of those) and verified."""
SHOWN_ISLANDS = 8
HELD_OUT = 4
"""Every fourth image is held out from calibration to measure the accuracy loss."""


@dataclass(frozen=True)
class ExportReport:
    """The files of an export, and their agreement with the checkpoint.

    ``compiled``: the device of a package, and how long the compilation took.
    """

    files: tuple[Path, ...]
    spec: ModelSpec
    verification: verification.Verification
    warnings: tuple[str, ...]
    islands: tuple[Island, ...] = ()
    verdict: Verdict | None = None
    compiled: str = ""


def export(config: ExportConfig, progress: Progress = no_progress) -> ExportReport:
    """Export a checkpoint to a verified, self-describing ONNX file or AOTInductor package.

    Args:
        config: options of the export.
        progress: called with a message for each step, and the finished fraction of the export, if
            it is known.

    Raises:
        CheckpointError: the checkpoint cannot be read, or was not annealed.
        UsageError: required information is missing, or options contradict the checkpoint.
        VerificationError: the export does not agree with the checkpoint; nothing is written.
        OutputError: the output cannot be written.
        MissingDependencyError: no backend for the verification is installed.
    """
    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    choose_backend(config.output, None)  # fail early: verification needs it
    verifying = search_images([config.verify_images] if config.verify_images else built_in_images())
    calibrating = search_images([config.calibrate]) if config.calibrate else None
    keep_files_of_torch()
    work = Work(progress)
    work.say("reading the checkpoint")
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
    calibration_images = verification_images = usable(verifying, "verification", processor, notes)
    if calibrating:
        limit = QUICK_IMAGES if config.quick else HELD_OUT * JUDGED_IMAGES
        calibration_images = usable(calibrating, "calibration", processor, notes, limit)
    work.say(f"building the network at {spec.image_size[0]}x{spec.image_size[1]}")
    package = config.output.suffix.lower() == PACKAGE
    # Quantisation and compilation need the complete network in memory.
    stream = checkpoint.bytes > STREAMED_BYTES and not package and config.precision not in QUANTIZED
    reference = build_network(checkpoint, spec.image_size, stream=stream)
    if config.budget is not None:
        pareto.check_matplotlib()
    judge = dataset = None
    if config.precision in QUANTIZED:
        dataset = open_dataset(list(config.data), spec) if config.data else None
        calibration_images, samples, note = split(calibration_images, dataset)
        notes += note
        samples = spread(samples, QUICK_JUDGED if config.quick else JUDGED_IMAGES)
        judge = Judge(
            NetworkEngine(reference, spec), samples, bool(dataset), work.phase("judgement")
        )
    inputs = (
        [processor.preprocess(image)[0] for image in spread(calibration_images, CALIBRATION_IMAGES)]
        if judge or (config.precision == "fp16" and not package)
        else []
    )
    if judge:
        if config.quick:
            verification_images = verification_images[:QUICK_VERIFIED]
        if not package:  # compiling takes most of the time
            _plan_work(work, judge, len(inputs), len(verification_images), config)
    if package:
        calibrate = partial(conversion.calibrate, config=config, inputs=inputs, work=work)
        if judge:
            story = conversion.calibration_story(config, inputs)
            spec = replace(spec, provenance={**spec.provenance, **story})
        compiled = export_package(
            config, reference, spec, verification_images, work.say,
            quantize=calibrate if judge else None, judge=judge,
        )  # fmt: skip
        notes += dataset.remarks() if dataset else []
        spec, result = compiled.spec, compiled.verification
        return ExportReport(
            (config.output,), spec, result, tuple(notes), (), compiled.verdict, compiled.compiled
        )
    made = conversion.build_graph(fold(copy.deepcopy(reference)), spec, config, inputs, judge, work)
    if dataset:
        notes += dataset.remarks()
    notes += [f"{island}: kept in FP32." for island in made.islands[:SHOWN_ISLANDS]]
    if len(made.islands) > SHOWN_ISLANDS:
        notes.append(
            f"{len(made.islands) - SHOWN_ISLANDS} more tensors are kept in FP32. `eomt-deploy "
            "inspect` lists them."
        )
    if made.unfused:
        notes.append(
            f"The attention of {made.unfused} blocks is not fused, because a part of it is in FP32."
        )
    if config.attention == "fused" and made.spec.precision == "fp32":
        notes.append("TensorRT-RTX supports fused attention in FP16 and BF16 only, not in FP32.")
    if made.spec.precision != config.precision:
        notes.append(
            f"No layer is {config.precision}, because of --budget or --high. The model is "
            f"{made.spec.precision}."
        )
    with staging_folder(config.output) as folder:
        work.say("writing the graph")
        files = graph.save(made.model, made.spec, folder, config.output.name)
        # The emulation rounds as FP16 and BF16 hardware does, which CPU backends do not, and runs
        # graphs that are larger than the memory part by part.
        backend = _verifier() if config.precision == "fp32" and not stream else "emulation"
        with open_engine(files[-1], backend=backend, device="cpu") as engine:
            result = verification.compare(
                engine,
                NetworkEngine(reference, made.spec),
                verification_images,
                work.phase("verification"),
            )
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


def _plan_work(
    work: Work, judge: Judge, calibration: int, verification: int, config: ExportConfig
) -> None:
    """Plan the export of a quantised model, and show how long it will take on this machine."""
    judged = len(judge.samples)
    each = 0 if config.quick else min(sensitivity_images(config.budget), judged)
    alone = judge.reference.spec.backbone.depth * each
    work.plan("calibration", calibration)
    work.plan("ranges", min(calibration, range_images(config.quick)), PROBED)
    # The checkpoint runs once on each judged image.
    work.plan("judgement", alone + judged, EMULATED + judged / (alone + judged))
    work.plan("verification", verification, 1 + EMULATED)
    began = time.perf_counter()
    judge.reference_result(0)
    seconds = work.passes * (time.perf_counter() - began)
    work.say(f"expected duration: about {duration(seconds)}")


def usable(
    found: FoundImages,
    purpose: str,
    processor: Processor,
    notes: list[str],
    limit: int | None = None,
) -> list[Path]:
    """The readable images among at most ``limit``; adds notes about those that are left out.

    Raises:
        ImageError: too few images are readable, see :func:`readable_images`.
    """
    paths = spread(found.paths, limit or len(found.paths))
    readable, unreadable = readable_images(paths, purpose, processor.preprocess)
    notes += unreadable
    if found.note:
        notes.append(f"Images for {purpose}: {found.note}.")
    return readable


def _verifier() -> str | None:
    """ONNX Runtime if it is installed: other backends would cache what they compile."""
    return "onnxruntime" if BACKENDS["onnxruntime"].installed else None


def split(
    images: Sequence[Path], dataset: Dataset | None
) -> tuple[list[Path], list[Sample], list[str]]:
    """Images to calibrate on, samples to measure the accuracy loss on, and warnings."""
    if dataset:
        return list(images), spread(dataset.samples, JUDGED_IMAGES), list(dataset.notes)
    judged = list(images[HELD_OUT - 1 :: HELD_OUT])
    if not judged:
        note = (
            f"The accuracy loss is measured on the calibration images themselves ({len(images)}), "
            f"so it is too optimistic. Pass at least {HELD_OUT} images, better 100."
        )
        return list(images), list(unlabelled(images)), [note]
    rest = [image for index, image in enumerate(images) if index % HELD_OUT != HELD_OUT - 1]
    return rest, list(unlabelled(spread(judged, JUDGED_IMAGES))), []
