"""Semantic data sets with one label image of class ids per image."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from eomt_deploy.classes import read_classes
from eomt_deploy.decoding import IMAGE_SUFFIXES
from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.dataset_files import FileIndex
from eomt_deploy.evaluation.truth import Sample, Truth
from eomt_deploy.pixel_labels import VOID
from eomt_deploy.sources import RgbImage
from eomt_deploy.spec import ModelSpec
from eomt_deploy.units import counted

SUFFIXES = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
CITYSCAPES_LABEL = r"(?i)(\w+)/(\w+)/([^/]+)_gtFine_labelIds\.png$"
CITYSCAPES_IMAGE = rf"(?i)(\w+)/(\w+)/([^/]+)_leftImg8bit\.(?:{SUFFIXES})$"
ADE20K_LABEL = r"(?i)annotations/(training|validation)/([^/]+)\.png$"
ADE20K_IMAGE = rf"(?i)images/(training|validation)/([^/]+)\.(?:{SUFFIXES})$"
FOLDER_LABEL = r"(?i)^(?:(.*)/)?labels/(.+)\.png$"
FOLDER_IMAGE = rf"(?i)^(?:(.*)/)?images/(.+)\.(?:{SUFFIXES})$"
FOLDER_OTHER = rf"(?i)(^|/)labels/.+\.(?:{SUFFIXES})$"

FILE_VOID = 255
# labelIds of the 19 evaluated classes in the order of their train ids (cityscapesScripts).
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
ADE20K_CLASSES = 150

SamplesAndNotes = tuple[list[Sample], list[str]]
"""Samples, and notes on the data for the user."""
Lookup = npt.NDArray[np.int32]
"""Class id for each value in the file; -1 for void, -2 for an invalid value."""
UNKNOWN = -2


def read_cityscapes(index: FileIndex, spec: ModelSpec, split: str | None) -> SamplesAndNotes:
    """Read ``gtFine/<split>/<city>/*_gtFine_labelIds.png`` and ``leftImg8bit`` (default: val)."""
    _check_count(spec, len(CITYSCAPES_IDS), "Cityscapes")
    lookup = np.full(256, VOID, np.int32)
    lookup[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return _pair(index, CITYSCAPES_LABEL, CITYSCAPES_IMAGE, split or "val", lookup)


def read_ade20k(index: FileIndex, spec: ModelSpec, split: str | None) -> SamplesAndNotes:
    """Read ``annotations/<split>/*.png`` (0 is void) and ``images`` (default: validation)."""
    _check_count(spec, ADE20K_CLASSES, "ADE20K")
    lookup = np.full(256, UNKNOWN, np.int32)
    lookup[: ADE20K_CLASSES + 1] = np.arange(-1, ADE20K_CLASSES)
    return _pair(index, ADE20K_LABEL, ADE20K_IMAGE, split or "validation", lookup)


def read_folder(index: FileIndex, spec: ModelSpec, split: str | None) -> SamplesAndNotes:
    """Read ``labels/*.png`` with class ids (255 is void) and ``images/*``, as for CamVid."""
    _check_class_file(index, spec)
    lookup = np.full(256, UNKNOWN, np.int32)
    lookup[: len(spec.classes)] = np.arange(len(spec.classes))
    lookup[FILE_VOID] = VOID
    labels = index.matching(FOLDER_LABEL)
    foreign = sorted(set(index.matching(FOLDER_OTHER)) - set(labels))
    if foreign:
        raise DatasetError(
            f"{index.describe(foreign[0])} is not a PNG file.",
            why="Other image formats may change class ids, e.g. by lossy compression.",
            fix="Save labels as 8-bit PNG with class ids.",
        )
    folders = sorted(
        {match[1] or "" for name in labels if (match := re.search(FOLDER_LABEL, name))}
    )
    if split is None and len(folders) > 1:
        raise DatasetError(
            f"There are labels in several folders: {', '.join(f or '.' for f in folders)}.",
            fix=f"Select one with --split, e.g. --split {PurePosixPath(folders[-1]).name}.",
        )
    chosen = [f for f in folders if split is None or split in PurePosixPath(f).parts]
    if len(chosen) != 1:
        raise DatasetError(
            f"One folder with labels must match the split {split!r}, got {len(chosen)}.",
            why=f"The folders with labels are {', '.join(f or '.' for f in folders)}.",
            fix="Pass a --split that matches one of these folders.",
        )
    return _pair(index, FOLDER_LABEL, FOLDER_IMAGE, chosen[0] or None, lookup)


def _pair(
    index: FileIndex, label_pattern: str, image_pattern: str, split: str | None, lookup: Lookup
) -> SamplesAndNotes:
    """Pair labels and images by the groups of their patterns; the first group is the split.

    Raises:
        DatasetError: the split has no labels, or a label has no image or several.
    """
    labels = {m.groups(): n for n in index.names if (m := re.search(label_pattern, n))}
    images: dict[tuple[str | None, ...], list[str]] = {}
    for name in index.names:
        if match := re.search(image_pattern, name):
            images.setdefault(match.groups(), []).append(name)
    wanted = [key for key in labels if key[0] == split]
    if not wanted:
        known = ", ".join(sorted({str(key[0]) for key in labels}))
        raise DatasetError(
            f"There are no labels of the split {split!r}.", fix=f"Use a split of: {known}."
        )
    for key in wanted:
        if key not in images:
            raise DatasetError(
                f"The label {index.describe(labels[key])} has no image.",
                why=f"None of {len(images)} images has the same split and name.",
                fix="Also pass the folder or zip file with the images: --data A --data B.",
            )
        if len(images[key]) > 1:
            raise DatasetError(
                f"The label {index.describe(labels[key])} must have 1 image, got "
                f"{len(images[key])}: {', '.join(images[key])}.",
                fix="Keep only the image that was labelled.",
            )
    bare = sum(key[0] == split and key not in labels for key in images)
    samples = [_sample(index, labels[key], images[key][0], lookup) for key in wanted]
    return samples, [f"{counted(bare, 'image')} without a label"] if bare else []


def _sample(index: FileIndex, label: str, file_name: str, lookup: Lookup) -> Sample:
    def truth() -> Truth:
        values = _read_labels(index, label)
        class_map = lookup[values]
        if (class_map == UNKNOWN).any():
            wrong = np.unique(values[class_map == UNKNOWN]).tolist()[:5]
            raise DatasetError(
                f"{index.describe(label)} has values that are not class ids: "
                f"{', '.join(map(str, wrong))}.",
                fix=f"Write class ids, and {FILE_VOID} for void.",
            )
        return Truth((values.shape[0], values.shape[1]), class_map=class_map)

    def image() -> RgbImage:
        with index.opened(label) as picture:  # reads only the header
            size = picture.height, picture.width
        return index.image(file_name, size)

    return Sample(file_name, image, truth)


def _read_labels(index: FileIndex, name: str) -> npt.NDArray[np.uint8]:
    """Stored values of an 8-bit greyscale or palette image, uint8 [H, W]."""
    with index.opened(name) as picture:
        if picture.mode not in ("L", "P"):
            raise DatasetError(
                f"{index.describe(name)} must have one 8-bit channel, got mode {picture.mode}.",
                fix="Save labels as 8-bit PNG with class ids.",
            )
        return np.asarray(picture, dtype=np.uint8)


def _check_count(spec: ModelSpec, count: int, data: str) -> None:
    if len(spec.classes) != count:
        raise DatasetError(
            f"{data} has {count} classes, the model {spec.name} has {len(spec.classes)}.",
            fix="Evaluate on the data set that the model was trained for.",
        )


def _check_class_file(index: FileIndex, spec: ModelSpec) -> None:
    """Check that a class list next to the data, if there is one, matches the model."""
    for path in index.paths:
        for candidate in (path / "classes.json", path.parent / "classes.json"):
            if candidate.is_file():
                # Only names are compared, so the list may be without things.
                names = [info.name for info in read_classes(candidate, "semantic")]
                own = [info.name for info in spec.classes]
                if names != own:
                    raise DatasetError(
                        f"The classes of {candidate} are not those of the model {spec.name}.",
                        why=f"data: {', '.join(names[:6])}, …; model: {', '.join(own[:6])}, ….",
                        fix="Evaluate on the data set that the model was trained for.",
                    )
                return
