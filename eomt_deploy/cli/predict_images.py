"""`eomt-deploy predict` for images: overlays, labels and predictions.json, or one result file."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eomt_deploy.addresses import without_secrets
from eomt_deploy.cli.console import bar, ending_with, say, say_remarks, stderr, stdout, warn
from eomt_deploy.cli.predict_video import chosen_classes
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

FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".json", ".npz")
OTHER_SUFFIXES = (IMAGE_SUFFIXES | {".gif", ".csv", ".txt", ".pdf", ".mp4"}) - set(FILE_SUFFIXES)
STDIN = "-"
Predict = Callable[[Sequence[Any]], Iterator[Segmentation | ImageError]]


@dataclass(frozen=True)
class ImageJob:
    """What to read and to write.

    Attributes:
        sources: images as in :func:`search_images`, or ``-`` for standard input.
        output: folder, or file for one image.
        model: the model file.
        json: file that also receives predictions.json; ``-`` is standard output.
        thresholds: thresholds for :meth:`Segmenter.stream`; None takes those of the model.
        classes_only: names of classes, separated by commas; None keeps all.
        style: how overlays are drawn.
        resume: keep the results of an earlier run.
        overwrite: also replace files that eomt-deploy did not write.
    """

    sources: tuple[str, ...]
    output: Path
    model: Path
    json: Path | None
    thresholds: Mapping[str, Any]
    classes_only: str | None
    style: OverlayStyle
    resume: bool
    overwrite: bool

    @property
    def as_file(self) -> bool:
        """Whether the output is one file, not a folder."""
        return self.output.suffix.lower() in FILE_SUFFIXES and not self.output.is_dir()

    def check(self) -> None:
        """Check the output against the other options.

        Raises:
            UsageError: they do not fit together.
        """
        if self.as_file and (self.json or self.resume):
            raise UsageError(
                f"{'--json' if self.json else '--resume'} needs an output folder, got "
                f"{self.output}.",
                fix="Choose a folder with -o, or leave the option out.",
            )
        suffix = self.output.suffix
        if not self.as_file and suffix.lower() in OTHER_SUFFIXES and not self.output.is_dir():
            raise UsageError(
                f"Results cannot be written as {suffix}: {self.output}.",
                fix=f"Choose a folder; for one image also {', '.join(FILE_SUFFIXES)}.",
            )
        if self._is_stdin and not self.as_file:
            raise UsageError(
                "The result of an image on standard input needs an output file.",
                fix=f"Pass -o with one of these suffixes: {', '.join(FILE_SUFFIXES)}.",
            )

    def search(self) -> FoundImages:
        """The images, and what was left out; empty for standard input."""
        if self._is_stdin:
            return FoundImages((), ())
        return search_images(self.sources, addresses=True)

    def check_targets(self, inputs: Sequence[Path]) -> None:
        """Check that no output replaces an input or a foreign file."""
        targets: dict[str, Path | None] = {"-o": self.output}
        if not self.as_file:
            targets = {"-o": self.output / SUMMARY, "--json": self.json}
        check_outputs(targets, inputs=[self.model, *inputs], overwrite=self.overwrite)

    @property
    def _is_stdin(self) -> bool:
        return self.sources == (STDIN,)


def predict_images(job: ImageJob, opening: Callable[[], Segmenter]) -> None:
    """Segment the images of a job.

    Args:
        job: the job.
        opening: opens the model file.
    """
    job.check()
    search = job.search()
    found: list[Source] = [*search.paths, *search.addresses]
    job.check_targets(search.paths)
    with ending_with(search.note), opening() as segmenter:
        _Predicting(job, segmenter).run(found)


class _Predicting:
    """A job with its open model."""

    def __init__(self, job: ImageJob, segmenter: Segmenter) -> None:
        self._job, self._segmenter = job, segmenter
        self._used = segmenter.processor.thresholds(*job.thresholds.values())
        # Also draw what was asked for.
        self._style = replace(job.style, min_score=job.thresholds["score_threshold"])
        names = job.classes_only
        self._kept = None if names is None else chosen_classes(segmenter, names)
        say(segmenter.engine.where, stderr)
        say_remarks(segmenter.engine)

    def run(self, found: list[Source]) -> None:
        if self._job.as_file:
            _predict_file(self._results, found or [sys.stdin.buffer], self._job.output, self._style)
        else:
            self._folder(found)

    def _results(self, images: Sequence[Any]) -> Iterator[Segmentation | ImageError]:
        for result in self._segmenter.stream(images, **self._job.thresholds, return_errors=True):
            if self._kept is None or isinstance(result, ImageError):
                yield result
            else:
                yield result.filter(classes=self._kept)

    def _folder(self, found: list[Source]) -> None:
        job = self._job
        with PredictionFolder(job.output, self._segmenter.spec, self._style) as folder:
            names = output_names(_without_results(found, folder))
            removed = folder.start(
                names, self._settings(), resume=job.resume, overwrite=job.overwrite
            )
            if removed and not job.resume:
                say(
                    f"replacing {counted(removed, 'file')} of an earlier run in {job.output}/",
                    stderr,
                )
            _predict_folder(self._results, names, folder, job.json)

    def _settings(self) -> dict[str, Any]:
        """The settings that results depend on, as text that a later run can show."""
        settings = _settings(self._job.model, self._segmenter, self._used)
        if self._job.style != OverlayStyle():
            settings["overlay"] = asdict(self._job.style)
        if self._kept is not None:
            settings["classes"] = sorted(self._kept)
        return settings


def _settings(model: Path, segmenter: Segmenter, thresholds: Thresholds) -> dict[str, Any]:
    """The settings of every run: model file, backend and thresholds."""
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
