"""`eomt-deploy predict`: images in, overlays and results out."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eomt_deploy.addresses import without_secrets
from eomt_deploy.cli.console import bar, ending_with, say, say_remarks, stderr, stdout, warn
from eomt_deploy.cli.options import (
    OVERLAY,
    Arithmetic,
    Backend,
    Device,
    MaskThreshold,
    MaxPixels,
    Model,
    OverlapThreshold,
    Overwrite,
    ScoreThreshold,
    Threads,
    with_options,
)
from eomt_deploy.cli.predict_video import VideoJob, chosen_classes, predict_videos
from eomt_deploy.cli.stopping import uninterrupted
from eomt_deploy.drawing import OverlayStyle
from eomt_deploy.errors import ImageError, OutputError, UsageError
from eomt_deploy.files import PICTURE_FORMATS, save_picture, write_atomically
from eomt_deploy.image_search import FoundImages, search_images
from eomt_deploy.outputs import check_outputs
from eomt_deploy.predictions import (
    SUMMARY,
    PredictionFolder,
    Source,
    is_about_one_image,
    output_names,
)
from eomt_deploy.result import Segmentation
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import IMAGE_SUFFIXES
from eomt_deploy.spec import Thresholds
from eomt_deploy.units import counted
from eomt_deploy.video import is_video

FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".json", ".npz")
OTHER_SUFFIXES = (IMAGE_SUFFIXES | {".gif", ".csv", ".txt", ".pdf", ".mp4"}) - set(FILE_SUFFIXES)
STDIN = "-"
Predict = Callable[[Sequence[Any]], Iterator[Segmentation | ImageError]]


def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Image files, folders, globs, http(s) addresses, or @list.txt with one of these "
            "per line; - reads one image from standard input. Or videos: files, addresses of "
            "streams (rtsp:// …), or the number of a camera.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Folder to write to; for one image also a .png, .jpg, .json or .npz file; for one "
            "video a .mp4, .mkv, .mov or .webm file (overlays), .labels.mkv (labels) or .jsonl.",
        ),
    ],
    backend: Backend = None,
    device: Device = None,
    threads: Threads = None,
    arithmetic: Arithmetic = None,
    score_threshold: ScoreThreshold = None,
    mask_threshold: MaskThreshold = None,
    overlap_threshold: OverlapThreshold = None,
    classes_only: Annotated[
        str | None,
        typer.Option(
            "--classes-only",
            metavar="NAMES",
            help="Keep only these classes, e.g. car,person. Ids work, too.",
        ),
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="Take only each n-th frame of a video (default: 1).")
    ] = None,
    start: Annotated[
        float | None, typer.Option(help="Seconds to leave out at the start of a video.")
    ] = None,
    end: Annotated[
        float | None,
        typer.Option(help="Time in seconds at which to stop; of a camera or stream, its duration."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the results of a stopped run and do the rest.")
    ] = False,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Also write predictions.json to this file (- for stdout)."),
    ] = None,
    **overlay: Any,
) -> None:
    """Segment images or videos.

    An output folder receives overlay/*.jpg, labels/*.png (semantic class ids, or COCO panoptic ids)
    and predictions.json (COCO); of a video NAME.mp4 (overlays, with the sound), NAME.labels.mkv and
    NAME.jsonl. Results of an earlier run are replaced, or kept with --resume. The suffix of an
    output file selects its format.
    """
    opening = partial(
        Segmenter,
        model, backend=backend, device=device, threads=threads, arithmetic=arithmetic,
        max_pixels=max_pixels,
    )  # fmt: skip
    thresholds: dict[str, Any] = {
        "score_threshold": score_threshold, "mask_threshold": mask_threshold,
        "overlap_threshold": overlap_threshold,
    }  # fmt: skip
    style = OverlayStyle(**{name: value for name, value in overlay.items() if value is not None})
    if any(map(is_video, images)):
        if resume or json:
            raise UsageError(
                f"{'--json' if json else '--resume'} is for images, not for videos.",
                fix="Leave it out; -o RESULT.jsonl writes JSON.",
            )
        job = VideoJob(
            tuple(dict.fromkeys(images)), output, 1 if every is None else every, start or 0, end,
            max_pixels, classes_only, style, overwrite,
        )  # fmt: skip
        predict_videos(job, model, opening, thresholds)
        return
    if given := [n for n, v in (("every", every), ("start", start), ("end", end)) if v is not None]:
        raise UsageError(f"--{given[0]} is for videos, not for images.", fix="Leave it out.")
    as_file = output.suffix.lower() in FILE_SUFFIXES and not output.is_dir()
    if as_file and (json or resume):
        raise UsageError(
            f"{'--json' if json else '--resume'} needs an output folder, got {output}.",
            fix="Choose a folder with -o, or leave the option out.",
        )
    if not as_file and output.suffix.lower() in OTHER_SUFFIXES and not output.is_dir():
        raise UsageError(
            f"Results cannot be written as {output.suffix}: {output}.",
            fix=f"Choose a folder; for one image also {', '.join(FILE_SUFFIXES)}.",
        )
    if images == [STDIN]:
        if not as_file:
            raise UsageError(
                "The result of an image on standard input needs an output file.",
                fix=f"Pass -o with one of these suffixes: {', '.join(FILE_SUFFIXES)}.",
            )
        search = FoundImages((), ())
    else:
        search = search_images(images, addresses=True)
    found: list[Source] = [*search.paths, *search.addresses]
    targets = {"-o": output} if as_file else {"-o": output / SUMMARY, "--json": json}
    check_outputs(targets, inputs=[model, *search.paths], overwrite=overwrite)
    with ending_with(search.note), opening() as segmenter:
        used = segmenter.processor.thresholds(*thresholds.values())
        shown = replace(style, min_score=score_threshold)  # also draw what was asked for
        kept = None if classes_only is None else chosen_classes(segmenter, classes_only)
        say(segmenter.engine.where, stderr)
        say_remarks(segmenter.engine)

        def run(images: Sequence[Any]) -> Iterator[Segmentation | ImageError]:
            for result in segmenter.stream(images, **thresholds, return_errors=True):
                if kept is None or isinstance(result, ImageError):
                    yield result
                else:
                    yield result.filter(classes=kept)

        if as_file:
            _predict_file(run, found or [sys.stdin.buffer], output, shown)
            return
        with PredictionFolder(output, segmenter.spec, shown) as folder:
            names = output_names(_without_results(found, folder))
            settings = _settings(model, segmenter, used)
            if style != OverlayStyle():
                settings["overlay"] = asdict(style)
            if kept is not None:
                settings["classes"] = sorted(kept)
            removed = folder.start(names, settings, resume=resume, overwrite=overwrite)
            if removed and not resume:
                say(f"replacing {counted(removed, 'file')} of an earlier run in {output}/", stderr)
            _predict_folder(run, names, folder, json)


def _settings(model: Path, segmenter: Segmenter, thresholds: Thresholds) -> dict[str, Any]:
    """The settings that results depend on, as text that a later run can show."""
    status = model.stat()
    changed = datetime.datetime.fromtimestamp(status.st_mtime).isoformat(" ", "seconds")
    return {
        "model": f"{model.name} ({status.st_size} bytes, {changed})",
        "backend": segmenter.engine.where,
        "thresholds": asdict(thresholds),
    }


def _without_results(sources: list[Source], folder: PredictionFolder) -> list[Source]:
    """Leave out the results of an earlier run in the output folder, and report how many."""
    images = [s for s in sources if isinstance(s, str) or not folder.is_result(s)]
    if len(images) < len(sources):
        count = len(sources) - len(images)
        say(f"left out {counted(count, 'result')} of an earlier run in {folder.folder}", stderr)
    if not images:
        raise ImageError(
            f"There are only results of an earlier run in {folder.folder}, no images.",
            fix="Pass the original images.",
        )
    return images


def _predict_file(run: Predict, images: Sequence[Any], output: Path, style: OverlayStyle) -> None:
    if len(images) > 1:
        raise UsageError(
            f"The results of {len(images)} images do not fit into one file, {output}.",
            fix="Choose a folder with -o.",
        )
    result = next(run(images))
    if isinstance(result, ImageError):
        raise result
    if output.suffix.lower() in PICTURE_FORMATS:
        save_picture(result.overlay(style=style), output)
    else:
        result.save(output)
    say(f"wrote {output}: {result}")


def _predict_folder(
    run: Predict, names: dict[Source, str], folder: PredictionFolder, json: Path | None
) -> None:
    """Segment all images; predictions.json is written for the finished ones even if this stops."""
    kept = len(folder.done)
    left = [path for path in names if not folder.is_done(path)]
    if kept:
        say(f"keeping the results of {counted(kept, 'image')}, {len(left)} left", stderr)
    written = failed = 0
    stopped: BaseException | None = None
    try:
        with bar("predicting", len(left)) as progress:
            for index, (path, result) in enumerate(zip(left, run(left), strict=True), 1):
                if _write(folder, result, names[path], path):
                    written += 1
                else:
                    failed += 1
                progress(index)
    except (KeyboardInterrupt, SystemExit) as stop:
        stopped = stop
    finally:
        with uninterrupted():
            folder.finish()
    if json and str(json) != "-":
        write_atomically(json, (part.encode() for part in folder.summary()))
    elif json:
        for part in folder.summary():
            print(part, end="")
    place = f"{folder.folder}/"
    if stopped is not None:
        say(
            f"{written} of {len(left)} images are done; their results and predictions.json are in "
            f"{place}\n  fix: repeat the command with --resume to do the rest",
            stderr,
        )
        raise stopped
    total = f"{written} of {len(left)}" + (f" results (and kept {kept})" if kept else " results")
    say(f"wrote {total} to {place}", stderr if str(json) == "-" else stdout)
    if failed:
        raise ImageError(
            f"{failed} of {counted(len(left), 'image')} without a result; see the errors above.",
            fix="Repair or remove these images; --resume tries only these again.",
        )


def _write(
    folder: PredictionFolder, result: Segmentation | ImageError, name: str, source: Source
) -> bool:
    """Write the result of one image, or print why there is none."""
    shown = without_secrets(str(source))
    try:
        if isinstance(result, ImageError):
            raise result
        with uninterrupted():
            remark = folder.write(result, name, source)
    except OutputError as error:
        if not is_about_one_image(error):
            raise
        say(f"error: {shown}: {error}", stderr, "bold red")
        return False
    except ImageError as error:
        named = shown in error.what
        say(f"error: {error}" if named else f"error: {shown}: {error}", stderr, "bold red")
        return False
    if remark:
        warn(remark)
    return True


command = with_options(predict, OVERLAY)
