"""`eomt-deploy predict` for videos: a video of overlays, labels, or JSON lines."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from eomt_deploy.classes import find_classes
from eomt_deploy.cli.console import say, say_remarks, stderr, warn
from eomt_deploy.cli.stopping import Stopped, uninterrupted
from eomt_deploy.closing import Closing
from eomt_deploy.drawing import OverlayStyle
from eomt_deploy.errors import UsageError
from eomt_deploy.files import GENERATOR, staging_folder, through_links
from eomt_deploy.outputs import check_outputs
from eomt_deploy.result import Segmentation
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.units import counted
from eomt_deploy.video import Video, VideoFile, is_live, is_video, open_video
from eomt_deploy.video.writing import CODECS, VideoWriter, check_format
from eomt_deploy.web import file_name

LABELS, LINES = ".labels.mkv", ".jsonl"
WAITING_RESULTS = 2
"""Maximum number of results that wait to be drawn and written."""


@dataclass(frozen=True)
class VideoJob:
    """What to read and to write.

    Attributes:
        sources: videos as in :func:`open_video`.
        output: folder, or file for one video.
        every: as in :func:`open_video`.
        start: as ``every``.
        end: as ``every``.
        max_pixels: as ``every``.
        classes_only: names of classes, separated by commas; None keeps all.
        style: how overlays are drawn.
        overwrite: also replace files that eomt-deploy did not write.
    """

    sources: tuple[str, ...]
    output: Path
    every: int
    start: float
    end: float | None
    max_pixels: int | None
    classes_only: str | None
    style: OverlayStyle
    overwrite: bool


def chosen_classes(segmenter: Segmenter, text: str) -> frozenset[int]:
    """The ids of the classes in a list such as ``car,person,7``."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UsageError("--classes-only needs the name of a class.", fix="--classes-only car")
    names = segmenter.names.values()
    return find_classes(
        segmenter.classes,
        [int(item) if item.isdecimal() and item not in names else item for item in items],
    )


def predict_videos(
    job: VideoJob,
    model: Path,
    opening: Callable[[], Segmenter],
    thresholds: Mapping[str, Any],
) -> None:
    """Segment each video of a job.

    Args:
        job: the job.
        model: the model file.
        opening: opens the model file.
        thresholds: thresholds for :meth:`Segmenter.stream`.
    """
    if images := [source for source in job.sources if not is_video(source)]:
        raise UsageError(
            f"Videos and images cannot be predicted together: {images[0]} is not a video.",
            fix="Run the command once for the videos and once for the images.",
        )
    targets = [_targets(job, source, name) for source, name in _names(job.sources).items()]
    inputs = [model, *(Path(s) for s in job.sources if Path(s).is_file())]
    every = [path for one in targets for path in one]
    names = ["-o"] if len(every) == 1 else [f"-o, for {path.name}," for path in every]
    check_outputs(dict(zip(names, every, strict=True)), inputs=inputs, overwrite=job.overwrite)
    for source in job.sources:
        if not is_live(source):  # before the model is opened, which takes longer
            _open(job, source).close()
    with opening() as segmenter:
        segmenter.processor.thresholds(*thresholds.values())
        style = replace(job.style, min_score=thresholds["score_threshold"])
        kept = None if job.classes_only is None else chosen_classes(segmenter, job.classes_only)
        paths = [_without_labels(one, segmenter, folder=_is_folder(job)) for one in targets]
        say(segmenter.engine.where, stderr)
        say_remarks(segmenter.engine)
        for source, one in zip(job.sources, paths, strict=True):
            _predict(_open(job, source), segmenter, one, thresholds, kept, style)


def _open(job: VideoJob, source: str) -> Video:
    return open_video(
        source, every=job.every, start=job.start, end=job.end, max_pixels=job.max_pixels
    )


def _is_folder(job: VideoJob) -> bool:
    return job.output.is_dir() or not job.output.suffix


def _names(sources: tuple[str, ...]) -> dict[str, str]:
    """Source -> name of its results."""
    names: dict[str, str] = {}
    for source in sources:
        if source.isdecimal():
            stem = f"camera-{source}"
        else:
            stem = Path(file_name(source) if "://" in source else source).stem
        stem = stem or "video"
        name, number = stem, 1
        while name in names.values():
            number += 1
            name = f"{stem} ({number})"
        names[source] = name
    return names


def _targets(job: VideoJob, source: str, name: str) -> list[Path]:
    """The files to write for one video."""
    if _is_folder(job):
        return [job.output / f"{name}{suffix}" for suffix in (".mp4", LABELS, LINES)]
    if len(job.sources) > 1:
        raise UsageError(
            f"The results of {len(job.sources)} videos do not fit into one file, {job.output}.",
            fix="Choose a folder with -o.",
        )
    if job.output.suffix.lower() not in (*CODECS, LINES):
        raise UsageError(
            f"The results of a video cannot be written as {job.output.suffix}: {job.output}.",
            fix=f"Choose a folder, or one of these suffixes: {', '.join(CODECS)} (overlays), "
            f"{LABELS} (labels), {LINES}.",
        )
    return [job.output]


def _without_labels(paths: list[Path], segmenter: Segmenter, *, folder: bool) -> list[Path]:
    """Instances overlap, so that no label video can hold them."""
    if segmenter.spec.task != "instance":
        return paths
    if not folder and _is_labels(paths[0]):
        raise UsageError(
            "Instances can overlap, so they cannot be written as a label video.",
            fix=f"Choose {LINES} instead of {LABELS}.",
        )
    return [path for path in paths if not _is_labels(path)]


def _is_labels(path: Path) -> bool:
    return path.name.lower().endswith(LABELS)


def _predict(
    video: Video,
    segmenter: Segmenter,
    paths: list[Path],
    thresholds: Mapping[str, Any],
    kept: frozenset[int] | None,
    style: OverlayStyle,
) -> None:
    """Segment one video. If it is stopped or lost, the files contain the frames before."""
    sinks = [
        _Lines(path, video) if path.suffix.lower() == LINES else _Pictures(path, video, style)
        for path in paths
    ]
    writing = _Writing(sinks)
    stopped: BaseException | None = None
    try:
        with _progress(video) as progress, writing:
            for result in segmenter.stream(video, **thresholds):
                writing.add(result if kept is None else result.filter(classes=kept))
                progress(writing.count)
    except BaseException as error:
        stopped = error
    with uninterrupted(), ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
    for remark in (*video.remarks, *(r for sink in sinks for r in sink.remarks)):
        warn(remark)
    if writing.count:
        places = ", ".join(map(str, paths))
        say(f"wrote {counted(writing.count, 'frame')} of {video.name} to {places}")
    if stopped is not None and not (video.live and _is_ctrl_c(stopped)):
        raise stopped


def _is_ctrl_c(stop: BaseException) -> bool:
    """Whether the user ended a live video, which has no other end."""
    return isinstance(stop, Stopped) and stop.signal_name == "SIGINT"


class _Writing(Closing):
    """Draws and writes results in another thread while the next ones are computed.

    Attributes:
        count: number of results that are written.
    """

    def __init__(self, sinks: Sequence[_Sink]) -> None:
        self.count = 0
        self._sinks = sinks
        self._thread = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[None]] = deque()

    def add(self, result: Segmentation) -> None:
        """Write a result later; wait if too many are waiting."""
        self._waiting.append(self._thread.submit(self._write, result))
        while len(self._waiting) > WAITING_RESULTS:
            self._waiting.popleft().result()

    def _write(self, result: Segmentation) -> None:
        for sink in self._sinks:
            sink.write(result)
        self.count += 1

    def close(self) -> None:
        """Write the waiting results, also if the command is stopped."""
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown()


@contextmanager
def _progress(video: Video) -> Iterator[Callable[[int], None]]:
    """A progress bar with frames per second."""
    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), _Speed(), TimeElapsedColumn()]
    if video.count is not None:
        columns.append(TimeRemainingColumn())
    hidden = not stderr.is_terminal
    with Progress(*columns, console=stderr, transient=True, disable=hidden) as progress:
        task = progress.add_task(video.name[-40:], total=video.count)
        yield lambda done: progress.update(task, completed=done)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} FPS" if task.speed else "")


class _Sink(Closing):
    """Writes one kind of result."""

    remarks: tuple[str, ...] = ()

    def write(self, result: Segmentation) -> None:
        raise NotImplementedError


class _Pictures(_Sink):
    """Overlays or labels as a video."""

    def __init__(self, path: Path, video: Video, style: OverlayStyle) -> None:
        self._path, self._video, self._style = path, video, style
        self._labels = _is_labels(path)
        check_format(path, "labels" if self._labels else "overlay")
        self._writer: VideoWriter | None = None

    def write(self, result: Segmentation) -> None:
        picture = result.label_image() if self._labels else result.overlay(style=self._style)
        pixels = np.asarray(picture)
        if self._writer is None:
            sound = self._video if isinstance(self._video, VideoFile) else None
            self._writer = VideoWriter(
                self._path,
                pixels.shape[:2],
                self._video.rate,
                kind="labels" if self._labels else "overlay",
                sound=None if self._labels else sound,
            )
        assert result.time is not None
        self._writer.write(pixels, result.time)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.remarks = self._writer.remarks


class _Lines(_Sink):
    """One JSON object per result: its number and time, and COCO annotations."""

    def __init__(self, path: Path, video: Video) -> None:
        self._name, self._count = video.name, 0
        self._good = 0
        self._regular = not path.exists() or path.is_file()
        with ExitStack() as stack:
            if self._regular:
                target = through_links(path)
                staged = stack.enter_context(staging_folder(target)) / path.name
                stack.callback(lambda: staged.replace(target) if self._count else None)
            else:  # a pipe
                staged = path
            self._file = stack.enter_context(staged.open("wb", buffering=0))
            self._resources = stack.pop_all()

    def write(self, result: Segmentation) -> None:
        line = {
            "generator": GENERATOR,
            "video": self._name,
            "frame": self._count,
            "time": result.time,
            "height": result.size[0],
            "width": result.size[1],
            "annotations": result.to_coco(image_id=self._count),
        }
        left = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
        while left:
            left = left[self._file.write(left) :]
        self._count += 1
        self._good = self._file.tell() if self._regular else 0

    def close(self) -> None:
        if self._regular and not self._file.closed:
            self._file.truncate(self._good)  # a line that did not fit on the disk
        self._resources.close()
