"""Semantic data sets whose labels are one picture of class ids per image."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy.classes import read_classes
from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.files import FileIndex
from eomt_deploy.evaluation.truth import VOID, Sample, Truth
from eomt_deploy.sources import IMAGE_SUFFIXES
from eomt_deploy.spec import ModelSpec

CITYSCAPES_LABEL = r"(^|/)gtFine/\w+/.*_gtFine_labelIds\.png$"
ADE20K_LABEL = r"(^|/)annotations/(training|validation)/[^/]*\.png$"
FOLDER_LABEL = r"(^|/)labels/[^/]*\.png$"

FILE_VOID = 255
# labelIds of the 19 evaluated classes in the order of their train ids (cityscapesScripts).
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
ADE20K_CLASSES = 150

Lookup = npt.NDArray[np.int32]
"""Class id by value in the file; -1 void; -2 no such value."""
UNKNOWN = -2


def read_cityscapes(index: FileIndex, spec: ModelSpec, split: str | None) -> list[Sample]:
    """``gtFine/<split>/*/*_gtFine_labelIds.png`` beside ``leftImg8bit``; val by default."""
    _check_count(spec, len(CITYSCAPES_IDS), "Cityscapes")
    lookup = np.full(256, VOID, np.int32)
    lookup[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    labels = [n for n in index.matching(CITYSCAPES_LABEL) if f"gtFine/{split or 'val'}/" in n]
    return [
        _sample(
            index,
            label,
            [label.replace("_gtFine_labelIds", "_leftImg8bit").replace("gtFine/", "leftImg8bit/")],
            lookup,
        )
        for label in labels
    ]


def read_ade20k(index: FileIndex, spec: ModelSpec, split: str | None) -> list[Sample]:
    """``annotations/<split>/*.png`` beside ``images``; 0 is void; validation by default."""
    _check_count(spec, ADE20K_CLASSES, "ADE20K")
    lookup = np.full(256, UNKNOWN, np.int32)
    lookup[: ADE20K_CLASSES + 1] = np.arange(-1, ADE20K_CLASSES)
    part = f"annotations/{split or 'validation'}/"
    return [
        _sample(
            index,
            label,
            [label.replace("annotations/", "images/").replace(".png", ".jpg")],
            lookup,
        )
        for label in index.matching(ADE20K_LABEL)
        if part in label
    ]


def read_folder(index: FileIndex, spec: ModelSpec, split: str | None) -> list[Sample]:
    """``labels/*.png`` with class ids (255 void) beside ``images/*``; CamVid-style."""
    _check_class_file(index, spec)
    lookup = np.full(256, UNKNOWN, np.int32)
    lookup[: len(spec.classes)] = np.arange(len(spec.classes))
    lookup[FILE_VOID] = VOID
    labels = index.matching(FOLDER_LABEL)
    if split:
        labels = [label for label in labels if split in PurePosixPath(label).parts]
    samples = []
    for label in labels:
        path = PurePosixPath(label)
        stem = path.parent.parent / "images" / path.stem
        candidates = [f"{stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
        samples.append(_sample(index, label, candidates, lookup))
    return samples


def _sample(index: FileIndex, label: str, candidates: list[str], lookup: Lookup) -> Sample:
    photo = next((name for name in candidates if name in index), None)
    if photo is None:
        raise DatasetError(
            f"{index.describe(label)} has no image beside it.",
            why=f"Looked for {candidates[0]}"
            + (f" and {len(candidates) - 1} other suffixes." if len(candidates) > 1 else "."),
            fix="Pass the folder or zip with the images, too: --data A --data B.",
        )
    found = photo

    def truth() -> Truth:
        values = _read_labels(index, label)
        class_map = lookup[values]
        if (class_map == UNKNOWN).any():
            wrong = np.unique(values[class_map == UNKNOWN]).tolist()[:5]
            raise DatasetError(
                f"{index.describe(label)} has values that are no class: "
                f"{', '.join(map(str, wrong))}.",
                fix=f"Write class ids, and {FILE_VOID} for void.",
            )
        return Truth((values.shape[0], values.shape[1]), class_map=class_map)

    return Sample(PurePosixPath(found).name, lambda: index.image(found), truth)


def _read_labels(index: FileIndex, name: str) -> npt.NDArray[np.uint8]:
    """Values of an 8-bit greyscale or palette picture: uint8 [H, W]."""
    try:
        with Image.open(io.BytesIO(index.read(name))) as picture:
            if picture.mode not in ("L", "P"):
                raise DatasetError(
                    f"{index.describe(name)} is a {picture.mode} picture, labels need one 8-bit "
                    "channel with class ids."
                )
            return np.asarray(picture, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{index.describe(name)} cannot be decoded: {error}.") from error


def _check_count(spec: ModelSpec, count: int, data: str) -> None:
    if len(spec.classes) != count:
        raise DatasetError(
            f"{data} has {count} classes, the model {spec.name} has {len(spec.classes)}.",
            fix="Evaluate on the data set that the model was trained for.",
        )


def _check_class_file(index: FileIndex, spec: ModelSpec) -> None:
    """A class list beside the data must be the model's; data without one is trusted."""
    for path in index.paths:
        for candidate in (path / "classes.json", path.parent / "classes.json"):
            if candidate.is_file():
                names = [info.name for info in read_classes(candidate)]
                own = [info.name for info in spec.classes]
                if names != own:
                    raise DatasetError(
                        f"The classes of {candidate} are not those of the model {spec.name}.",
                        why=f"data: {', '.join(names[:6])}, …; model: {', '.join(own[:6])}, ….",
                    )
                return
