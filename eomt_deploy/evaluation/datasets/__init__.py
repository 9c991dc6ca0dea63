"""Data set readers. A reader is a function and one entry of FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.errors import DatasetError, UsageError
from eomt_deploy.evaluation.datasets import coco, label_maps
from eomt_deploy.evaluation.files import FileIndex
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
    """

    marker: str
    tasks: tuple[Task, ...]
    read: Reader


# In the order in which they are tried: instances before panoptic labels, which hold them, too.
FORMATS: dict[str, Format] = {
    "coco-instances": Format(coco.INSTANCES_JSON, ("instance",), coco.read_instances),
    "coco-panoptic": Format(coco.PANOPTIC_JSON, TASKS, coco.read_panoptic),
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
) -> Dataset:
    """Labelled data for a model.

    Args:
        paths: folders or official zip files that together hold images and labels.
        spec: the model: its task and classes must fit the data.
        format: one of :data:`FORMATS`; None recognises it.
        split: such as ``val`` or ``val2017``, where there are several.

    Raises:
        DatasetError: nothing recognised, incomplete, contradictory, empty, or other classes.
        UsageError: an unknown format.
    """
    index = FileIndex(paths)
    if format is None:
        format = next(
            (n for n, f in FORMATS.items() if spec.task in f.tasks and index.matching(f.marker)),
            None,
        )
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
    return Dataset(format, index.origin, tuple(samples), tuple(notes), index.fingerprint)
