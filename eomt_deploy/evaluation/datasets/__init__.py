"""Data set readers. A reader is a function with an entry in ``FORMATS``."""

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
    """A format of labelled data.

    Attributes:
        marker: regular expression of file names that identify the format.
        tasks: tasks that it has labels for.
        read: function that returns the samples of a split, and notes on data that it left out.
        json: for COCO, kind of labels, which identifies JSON files with other names.
    """

    marker: str
    tasks: tuple[Task, ...]
    read: Reader
    json: Kind | None = None


# In the order of detection: instance labels come first, as panoptic labels also contain instances.
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
    """Open labelled data for a model.

    Args:
        paths: folders or official zip files that together contain images and labels.
        spec: description of the model; its task and classes must match the data.
        format: name from :data:`FORMATS`; None detects it. COCO files are detected by their usual
            names, or else by the content of the JSON file.
        split: name of the split, e.g. ``val`` or ``val2017``, if there are several.
        max_pixels: limit for each image and label, see :func:`eomt_deploy.load_image`.

    Raises:
        DatasetError: the data are not recognised, incomplete, contradictory or empty, or have
            other classes than the model.
        UsageError: an unknown format, or a format without labels for the task.
    """
    index = FileIndex(paths, max_pixels=max_pixels)
    if format is None:
        format = _recognise(index, spec.task)
    elif format not in FORMATS:
        raise UsageError(f"Format {format!r} is unknown.", fix=f"Use one of: {', '.join(FORMATS)}.")
    elif spec.task not in FORMATS[format].tasks:
        raise UsageError(
            f"{format} has no {spec.task} labels.",
            fix=f"Use it for a model with one of these tasks: {', '.join(FORMATS[format].tasks)}.",
        )
    if format is None:
        raise DatasetError(
            f"No {spec.task} labels were recognised in {index.origin}.",
            why=f"None of {len(index.names)} files has the layout of "
            + ", ".join(n for n, f in FORMATS.items() if spec.task in f.tasks) + ".",
            fix="Pass folders or zip files with images and labels: --data A --data B. Your own "
            "semantic labels need images/*.jpg and labels/*.png with class ids (255 = void).",
        )  # fmt: skip
    samples, notes = FORMATS[format].read(index, spec, split)
    if not samples:
        raise DatasetError(
            f"{index.origin} does not contain a labelled image ({format}).",
            fix="Check that images and labels are in the folders of this format, or select "
            "another one with --format.",
        )
    return Dataset(
        format, index.origin, tuple(samples), tuple(notes), index.fingerprint, index.remarks
    )


def _recognise(index: FileIndex, task: Task) -> str | None:
    """Detect the format by file names, or else by the content of a JSON file."""
    fitting = {name: entry for name, entry in FORMATS.items() if task in entry.tasks}
    for name, entry in fitting.items():
        if index.matching(entry.marker):
            return name
    for name, entry in fitting.items():
        if entry.json and find_documents(index, entry.json):
            return name
    return None
