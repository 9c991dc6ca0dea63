"""The whole export: read, build, fold, trace, verify, publish."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.engines import choose_backend, open_engine
from eomt_deploy.exporting import describe, graph, verify
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.files import check_writable, staging_folder
from eomt_deploy.network.build import build_network
from eomt_deploy.network.folds import fold
from eomt_deploy.sources import find_images
from eomt_deploy.spec import ModelSpec


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the checkpoint."""

    files: tuple[Path, ...]
    spec: ModelSpec
    verification: verify.Verification
    warnings: tuple[str, ...]


def export(config: ExportConfig, progress: Callable[[str], None] = lambda _: None) -> ExportReport:
    """Export a checkpoint to a verified, self-describing ONNX file.

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
    check_writable(config.output)
    choose_backend(config.output, None)  # verification will need it: say so now
    images = (
        find_images([config.verify_images]) if config.verify_images else verify.default_images()
    )
    progress("reading the checkpoint")
    source = describe.find_source(config)
    checkpoint = read_checkpoint(source.location, heads=config.heads, num_blocks=config.num_blocks)
    describe.check_annealed(checkpoint, config.allow_unannealed)
    if config.native_size:
        grid = describe.native_grid(config.native_size, checkpoint)
        checkpoint = replace(checkpoint, native_grid=grid)
    spec = describe.describe(config, source, checkpoint)
    progress(f"building the network at {spec.image_size[0]}x{spec.image_size[1]}")
    reference = build_network(checkpoint, spec.image_size)
    folded = fold(copy.deepcopy(reference))

    progress("tracing the graph")
    model = graph.trace(folded, spec)
    with staging_folder(config.output) as folder:
        files = graph.save(model, folder, config.output.name)
        del model
        with open_engine(files[-1], device="cpu") as engine:
            result = verify.compare(engine, reference, images, progress)
        verify.check(result, spec.precision)
        graph.publish(files, config.output)
    return ExportReport(
        files=tuple(config.output.with_name(file.name) for file in files),
        spec=spec,
        verification=result,
        warnings=tuple(describe.warnings(config, source, checkpoint, spec)),
    )
