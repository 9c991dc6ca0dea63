"""What every data set reader gives: samples with an image and its ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import UsageError
from eomt_deploy.result import VOID, Rle, Segment, Segmentation
from eomt_deploy.sources import RgbImage, load_image
from eomt_deploy.spec import ClassInfo, Task


@dataclass(frozen=True)
class TruthSegment:
    """One labelled segment; a crowd is a region of many instances, not told apart.

    ``area`` is what the data say, where they do: COCO sorts by it into small, medium and large.
    """

    class_id: int
    rle: Rle
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Truth:
    """Labels of one image, in the classes of the model.

    Attributes:
        size: (H, W).
        class_map: semantic: class ids, int32 [H, W], -1 void.
        segments: panoptic and instance.
    """

    size: tuple[int, int]
    class_map: npt.NDArray[np.int32] | None = None
    segments: tuple[TruthSegment, ...] = ()

    def as_result(
        self, task: Task, classes: tuple[ClassInfo, ...], image: RgbImage
    ) -> Segmentation:
        """The labels as if a model had seen them, for pictures."""
        segments = tuple(
            Segment.from_rle(index, classes[s.class_id], 1.0, s.rle)
            for index, s in enumerate(self.segments)
        )
        if task == "semantic" and self.class_map is not None:
            present = [i for i in np.unique(self.class_map).tolist() if i != VOID]
            segments = tuple(
                Segment.from_mask(i, classes[i], 1.0, self.class_map == i) for i in present
            )
        # Void has no place in a semantic result; as instances the labels need no map.
        return Segmentation("instance", self.size, classes, segments=segments, image=image)


@dataclass(frozen=True)
class Sample:
    """One labelled image; both parts are read when they are called for.

    The image is in the pixels that its labels were made for: see :meth:`FileIndex.image`.
    """

    name: str
    image: Callable[[], RgbImage]
    truth: Callable[[], Truth]


def unlabelled(paths: Iterable[Path], *, max_pixels: int | None = None) -> tuple[Sample, ...]:
    """Images without labels, upright, to compare models on; ``max_pixels`` limits each."""

    def sample(path: Path) -> Sample:
        def truth() -> Truth:
            raise UsageError(f"{path} has no labels.")

        return Sample(path.name, lambda: load_image(path, max_pixels=max_pixels), truth)

    return tuple(sample(path) for path in paths)


@dataclass(frozen=True)
class Dataset:
    """Labelled images for one task.

    Attributes:
        format: which reader made it.
        origin: where it came from, for people.
        samples: in a fixed order.
        notes: what was left out, for people.
        fingerprint: changes when a file does.
        remarks: what is only known once images are read, for people: call it at the end.
    """

    format: str
    origin: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    fingerprint: str
    remarks: Callable[[], Sequence[str]] = field(default=lambda: (), compare=False)
