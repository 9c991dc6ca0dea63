"""Data set readers. A reader is a function and one entry of FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.errors import DatasetError, UsageError
from eomt_deploy.evaluation.dataset_files import FileIndex
from eomt_deploy.evaluation.datasets import coco, label_maps
from eomt_deploy.evaluation.datasets.coco_json import INSTANCES, PANOPTIC, Kind, find_documents
from eomt_deploy.evaluation.truth import Dataset, Sample
from eomt_deploy.spec import TASKS, ModelSpec, Task

Reader = Callable[[FileIndex, ModelSpec, str | None], tuple[list[Sample], list[str]]]


@dataclass(frozen=True)
class Format:
    """A kind of labelled data.

    Attributes:
        marker: regular expression of file names by which it is recognised.
        tasks: tasks that it has labels for.
        read: makes the samples of a split, and notes on what it left out.
        json: for COCO, what decides where no file name does.
    """

    marker: str
    tasks: tuple[Task, ...]
    read: Reader
    json: Kind | None = None


# In the order in which they are tried: instances before panoptic labels, which hold them, too.
FORMATS: dict[str, Format] = {
    "coco-instances": Format(INSTANCES.marker, ("instance",), coco.read_instances, INSTANCES),
    "coco-panoptic": Format(PANOPTIC.marker, TASKS, coco.read_panoptic, PANOPTIC),
    "cityscapes": Format(label_maps.CITYSCAPES_LABEL, ("semantic",), label_maps.read_cityscapes),
    "ade20k": Format(label_maps.ADE20K_LABEL, ("semantic",), label_maps.read_ade20k),
    "folder": Format(label_maps.FOLDER_LABEL, ("semantic",), label_maps.read_folder),
}


def open_dataset(
    paths: Iterable[str | Path],
    spec: ModelSpec,
    *,
    format: str | None = None,
    split: str | None = None,
    max_pixels: int | None = None,
) -> Dataset:
    """Labelled data for a model.

    Args:
        paths: folders or official zip files that together hold images and labels.
        spec: the model: its task and classes must fit the data.
        format: one of :data:`FORMATS`; None recognises it. For COCO, files of the usual names are
            taken, or else the JSON whose content fits.
        split: such as ``val`` or ``val2017``, where there are several.
        max_pixels: limit of each image and label, see :func:`eomt_deploy.load_image`.

    Raises:
        DatasetError: nothing recognised, incomplete, contradictory, empty, or other classes.
        UsageError: an unknown format.
    """
    index = FileIndex(paths, max_pixels=max_pixels)
    if format is None:
        format = _recognise(index, spec.task)
    elif format not in FORMATS:
        raise UsageError(f"Format {format!r} is unknown.", fix=f"Known: {', '.join(FORMATS)}.")
    elif spec.task not in FORMATS[format].tasks:
        raise UsageError(
            f"{format} has no {spec.task} labels.",
            fix=f"It is for {', '.join(FORMATS[format].tasks)} models.",
        )
    if format is None:
        raise DatasetError(
            f"No {spec.task} labels were recognised in {index.origin}.",
            why=f"{len(index.names)} files are there, none in the layout of "
            + ", ".join(n for n, f in FORMATS.items() if spec.task in f.tasks) + ".",
            fix="Pass folders or zips with images and labels: --data A --data B. A folder of your "
            "own needs images/*.jpg and labels/*.png with class ids (255 = void).",
        )  # fmt: skip
    samples, notes = FORMATS[format].read(index, spec, split)
    if not samples:
        raise DatasetError(f"{index.origin} holds no labelled image ({format}).")
    return Dataset(
        format, index.origin, tuple(samples), tuple(notes), index.fingerprint, index.remarks
    )


def _recognise(index: FileIndex, task: Task) -> str | None:
    """The format by the names of the files, or else by the content of a JSON."""
    fitting = {name: entry for name, entry in FORMATS.items() if task in entry.tasks}
    for name, entry in fitting.items():
        if index.matching(entry.marker):
            return name
    for name, entry in fitting.items():
        if entry.json and find_documents(index, entry.json):
            return name
    return None
