"""`eomt-deploy predict`: images in, overlays and results out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

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
from eomt_deploy.cli.predict_images import ImageJob, predict_images
from eomt_deploy.cli.predict_video import VideoJob, predict_videos
from eomt_deploy.drawing import OverlayStyle
from eomt_deploy.errors import UsageError
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.video import is_video


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
    image_job = ImageJob(
        tuple(images), output, model, json, thresholds, classes_only, style, resume, overwrite
    )
    predict_images(image_job, opening)


command = with_options(predict, OVERLAY)
