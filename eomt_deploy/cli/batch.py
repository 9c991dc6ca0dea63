"""`eomt-deploy batch`: very many images in, Parquet files out, on one machine or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eomt_deploy.batch.config import SHARD_SIZE, BatchConfig
from eomt_deploy.cli.console import say, scored_bar, stderr, stdout, warn, write_json
from eomt_deploy.cli.options import (
    Arithmetic,
    Backend,
    Device,
    MaskThreshold,
    MaxPixels,
    Model,
    OverlapThreshold,
    Overwrite,
    ScoreThreshold,
)
from eomt_deploy.units import counted

if TYPE_CHECKING:
    from eomt_deploy.batch.driver import State


def batch(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Folders, globs, image files, @list.txt, .parquet tables with a column `path`, or "
            "URIs: s3://, gs://, hf://, file:// and others of fsspec.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder or URI to write to, e.g. s3://bucket/x.",
        ),
    ],
    backend: Backend = None,
    device: Device = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Number of CPU threads of each model (default: all cores, up to 8)."),
    ] = None,
    arithmetic: Arithmetic = None,
    score_threshold: ScoreThreshold = None,
    mask_threshold: MaskThreshold = None,
    overlap_threshold: OverlapThreshold = None,
    max_pixels: MaxPixels = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Also write a label image (PNG) of each image.")
    ] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write an overlay of each image.")
    ] = False,
    shard_size: Annotated[
        int, typer.Option(help="Number of images per Parquet file.")
    ] = SHARD_SIZE,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Number of models that run at the same time (default: one per GPU, or as many as "
            "fit on the cores)."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster to use, e.g. auto or 10.0.0.1:6379 (default: start Ray "
            "on this machine only)."
        ),
    ] = None,
    max_errors: Annotated[
        int | None,
        typer.Option(help="Stop if more images than this have no result (default: never)."),
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the summary to this file (- for stdout)."),
    ] = None,
) -> None:
    """Segment very many images, on one machine or a Ray cluster.

    The output folder receives shards/*.parquet with one row per image (path, size, segments with
    COCO RLE masks, times, or an error), and summary.json. Repeat the command to continue a run that
    was stopped or killed: each image is in the result exactly once.
    """
    from eomt_deploy.batch.driver import run

    config = BatchConfig(
        model=model, sources=tuple(sources), output=output, backend=backend, device=device,
        threads=threads, arithmetic=arithmetic, max_pixels=max_pixels,
        score_threshold=score_threshold, mask_threshold=mask_threshold,
        overlap_threshold=overlap_threshold, labels=labels, overlays=overlays,
        shard_size=shard_size, concurrency=concurrency, address=address, max_errors=max_errors,
        overwrite=overwrite,
    )  # fmt: skip
    last: list[State] = []
    with ExitStack() as stack:
        try:
            with redirect_stdout(sys.stderr):  # Ray prints there that a worker died
                report = run(config, _shown_by(stack, last))
        except BaseException:  # also Ctrl-C
            stack.close()
            if last:
                done, total = last[-1].done + last[-1].kept, last[-1].left + last[-1].kept
                say(
                    f"about {done} of {counted(total, 'image')} are done; finished shards are in "
                    f"{output}\n  fix: run the same command again to do the rest",
                    stderr,
                )
            raise
    for note in report.notes:
        say(note, stderr)
    if json:
        write_json(json, report.to_dict())
    rate = f", {report.images_per_second:.3g} images/s" if report.images > report.kept else ""
    kept = f", {report.kept} of them earlier" if report.kept else ""
    text = f"wrote {counted(report.images, 'image')}{kept} in {counted(report.shards, 'shard')} to "
    say(f"{text}{output}{rate}", stderr if str(json) == "-" else stdout)
    if report.failed:
        warn(
            f"{counted(report.failed, 'image')} without a result: see the column `error` of "
            f"{output}/shards"
        )


def _shown_by(stack: ExitStack, last: list[State]) -> Callable[[State], None]:
    """A function that shows the progress, and keeps the latest one in ``last``."""
    said: set[str] = set()
    bars: list[Callable[[int, str], None]] = []

    def show(state: State) -> None:
        last[:] = [state]
        for remark in [*(f"running on {where}" for where in state.where), *state.remarks]:
            if remark not in said:
                said.add(remark)
                if remark in state.remarks:
                    warn(remark)
                else:
                    say(remark, stderr)
        if not state.where and not state.done:
            return
        if not bars:
            bars.append(stack.enter_context(scored_bar("segmenting", state.left)))
        rate = f"{state.images_per_second:.3g} images/s" if state.images_per_second else ""
        failed = f"{state.failed} without a result" if state.failed else ""
        bars[0](state.done, ", ".join(filter(None, (rate, failed))))

    return show
