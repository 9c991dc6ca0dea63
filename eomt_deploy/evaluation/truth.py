"""Result of a data set reader: samples, each with an image and its ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import UsageError
from eomt_deploy.masks import Rle
from eomt_deploy.pixel_labels import VOID
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment
from eomt_deploy.sources import RgbImage, load_image
from eomt_deploy.spec import ClassInfo, Task


@dataclass(frozen=True)
class TruthSegment:
    """One labelled segment.

    Attributes:
        class_id: class id of the model.
        rle: mask.
        crowd: whether the segment is a region of several instances that are not separated.
        area: area in pixels as given by the data, which COCO uses for the groups small, medium and
            large; None if it is not given.
    """

    class_id: int
    rle: Rle
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Truth:
    """Labels of one image, in the classes of the model.

    Attributes:
        size: (H, W) in pixels.
        class_map: class ids of semantic labels, int32 [H, W], -1 for void; else None.
        segments: segments of panoptic and instance labels.
    """

    size: tuple[int, int]
    class_map: npt.NDArray[np.int32] | None = None
    segments: tuple[TruthSegment, ...] = ()

    def as_result(
        self, task: Task, classes: tuple[ClassInfo, ...], image: RgbImage
    ) -> Segmentation:
        """The labels as a result of a model, for overlays."""
        segments = tuple(
            Segment.from_rle(index, classes[s.class_id], 1.0, s.rle)
            for index, s in enumerate(self.segments)
        )
        if task == "semantic" and self.class_map is not None:
            present = [i for i in np.unique(self.class_map).tolist() if i != VOID]
            segments = tuple(
                Segment.from_mask(i, classes[i], 1.0, self.class_map == i) for i in present
            )
        # A semantic result cannot contain void, so the labels become instances.
        return Segmentation("instance", self.size, classes, segments=segments, image=image)


@dataclass(frozen=True)
class Sample:
    """One labelled image; image and labels are read on each call.

    The image has the orientation of its labels, see :meth:`FileIndex.image`.
    """

    name: str
    image: Callable[[], RgbImage]
    truth: Callable[[], Truth]


def unlabelled(paths: Iterable[Path], *, max_pixels: int | None = None) -> tuple[Sample, ...]:
    """Upright images without labels, to compare models; ``max_pixels`` limits each image."""

    def sample(path: Path) -> Sample:
        def truth() -> Truth:
            raise UsageError(f"{path} has no labels.", fix="Pass a labelled data set.")

        return Sample(path.name, lambda: load_image(path, max_pixels=max_pixels), truth)

    return tuple(sample(path) for path in paths)


@dataclass(frozen=True)
class Dataset:
    """Labelled images for one task.

    Attributes:
        format: name of its reader in :data:`eomt_deploy.evaluation.datasets.FORMATS`.
        origin: its folders and zip files, for messages.
        samples: samples in a fixed order.
        notes: notes for the user on data that were left out.
        fingerprint: digest that changes if a file changes.
        remarks: function for remarks on the images read so far, to be called at the end.
    """

    format: str
    origin: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    fingerprint: str
    remarks: Callable[[], Sequence[str]] = field(default=lambda: (), compare=False)
