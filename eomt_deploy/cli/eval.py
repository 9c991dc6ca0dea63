"""`eomt-deploy eval`: the scores of an exported model on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from eomt_deploy.cli.console import (
    say,
    say_remarks,
    scored_bar,
    stderr,
    stdout,
    warn,
    write_json,
)
from eomt_deploy.cli.options import (
    Arithmetic,
    Backend,
    Device,
    Limit,
    MaskThreshold,
    MaxPixels,
    Model,
    OverlapThreshold,
    Overwrite,
    ScoreThreshold,
    Split,
    Threads,
)
from eomt_deploy.files import check_writable
from eomt_deploy.journal import Journal, JournalWriter
from eomt_deploy.outputs import check_outputs
from eomt_deploy.units import counted

if TYPE_CHECKING:
    from eomt_deploy.evaluation import EvalReport
    from eomt_deploy.evaluation.truth import Dataset
    from eomt_deploy.segmenter import Segmenter
    from eomt_deploy.spec import Thresholds

WORST_IMAGES = 10


def evaluate(
    model: Model,
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Labelled data: folder or official zip; can be repeated."),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="coco-panoptic, coco-instances, cityscapes, ade20k or folder (default: detected)."
        ),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    backend: Backend = None,
    device: Device = None,
    threads: Threads = None,
    arithmetic: Arithmetic = None,
    score_threshold: ScoreThreshold = None,
    mask_threshold: MaskThreshold = None,
    overlap_threshold: OverlapThreshold = None,
    max_pixels: MaxPixels = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="File with the progress: a stopped evaluation continues from it."),
    ] = None,
    worst: Annotated[
        Path | None,
        typer.Option(help="Folder for overlays of the 10 images with the worst scores."),
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file (- for stdout).")
    ] = None,
) -> None:
    """Score a model file on labelled data: mIoU, mask AP or PQ.

    Labels belong to the pixels as they are stored, so the EXIF orientation of an image is ignored,
    unless only the upright image has the size of its labels.
    """
    from eomt_deploy.evaluation import evaluate as run_evaluation
    from eomt_deploy.evaluation import open_dataset
    from eomt_deploy.segmenter import Segmenter

    # An existing file of --resume is checked by evaluate().
    log = None if resume and resume.is_file() else resume
    check_outputs({"--json": json, "--resume": log}, inputs=[model, *data], overwrite=overwrite)
    earlier = Journal.read(worst, ("*",)) if worst else None
    if earlier and not overwrite:
        earlier.check_foreign()
    if worst:
        check_writable(worst / "x.jpg")
    with Segmenter(
        model, backend=backend, device=device, threads=threads, arithmetic=arithmetic
    ) as segmenter:
        thresholds = segmenter.processor.thresholds(
            score_threshold, mask_threshold, overlap_threshold
        )
        dataset = open_dataset(
            data, segmenter.spec, format=format, split=split, max_pixels=max_pixels
        )
        total = min(len(dataset.samples), limit or len(dataset.samples))
        say(
            f"{counted(total, 'image')} of {dataset.origin} ({dataset.format}); "
            f"{segmenter.engine.where}",
            stderr,
        )
        say_remarks(segmenter.engine)
        for note in dataset.notes:
            warn(note)
        with scored_bar("evaluating", total) as progress:
            try:
                report = run_evaluation(
                    segmenter,
                    dataset,
                    limit=limit,
                    thresholds=thresholds,
                    resume=resume,
                    progress=progress,
                )
            except (KeyboardInterrupt, SystemExit):
                if resume:
                    say(
                        f"{resume} keeps the finished images: repeat the command to do the rest",
                        stderr,
                    )
                raise
        for remark in dataset.remarks():
            warn(remark)
        if str(json) != "-":
            _show(report)
        if json:
            write_json(json, report.to_dict())
        if earlier:
            earlier.remove_files()
            _draw_worst(segmenter, dataset, report, thresholds, earlier.folder)


def _show(report: EvalReport) -> None:
    rows = report.scores.per_class
    if rows:
        table = Table(box=None)
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "class" else "right")
        for row in rows:
            table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
        stdout.print(table)
    numbers = "  ".join(f"{name} {value:.2f}" for name, value in report.scores.summary.items())
    say(numbers)
    facts = report.facts
    digest = facts["model"]["sha256"]
    say(
        f"{counted(facts['images'], 'image')}; model file {facts['model']['file']} "
        f"({facts['model']['precision']}, sha256 {digest[:12]}…); {facts['evaluator']}"
    )


def _draw_worst(
    segmenter: Segmenter,
    dataset: Dataset,
    report: EvalReport,
    thresholds: Thresholds,
    folder: Path,
) -> None:
    from eomt_deploy.drawing import side_by_side
    from eomt_deploy.files import overlay_suffix, save_picture

    positions = report.worst(WORST_IMAGES)
    with JournalWriter(folder, {"command": "eval --worst"}) as journal:
        for rank, position in enumerate(positions, 1):
            sample = dataset.samples[position]
            image, truth = sample.image(), sample.truth()
            found = segmenter.processor.postprocess_with(*segmenter.logits(image), thresholds)
            labelled = truth.as_result(segmenter.spec.task, segmenter.spec.classes, image)
            picture = side_by_side([found.overlay(image), labelled.overlay()])
            name = f"{rank:02d}-{Path(sample.name).stem}{overlay_suffix(picture)}"
            journal.announce([name])
            save_picture(picture, folder / name)
            journal.record([name])
    say(
        f"wrote the {len(positions)} worst images to {folder}/ (left: predicted, right: labelled)",
        stderr,
    )
