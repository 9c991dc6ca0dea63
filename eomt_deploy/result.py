"""Segmentation: one result type for all tasks, with conversions to other formats."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy import conversions
from eomt_deploy.classes import find_classes
from eomt_deploy.drawing import OverlayStyle, draw_overlay, show_picture
from eomt_deploy.errors import UsageError
from eomt_deploy.pixel_labels import (
    LABEL_TYPES,
    Labels,
    only_classes,
    only_segments,
    to_class_map,
    to_segment_map,
)
from eomt_deploy.segments import Segment
from eomt_deploy.sources import ImageSource, RgbImage, load_image
from eomt_deploy.spec import ClassInfo, Task
from eomt_deploy.units import counted

if TYPE_CHECKING:
    import pandas
    import supervision

    from eomt_deploy.drawing import Palette


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of one image.

    Attributes:
        task: ``semantic``, ``instance`` or ``panoptic``.
        size: (H, W) of the image.
        classes: all classes of the model.
        labels: unsigned integers [H, W] of the smallest possible type. Semantic: class ids, and the
            largest value of the type for no class. Panoptic: segment ids + 1, 0 for no segment.
            Instance: None, because instances overlap.
        segments: the segments; empty for semantic. Instances are sorted by score and can overlap.
        image: the image, uint8 RGB [H, W, 3], not copied; None if it is not known.
        time: seconds since the start of the video; None for images.
        confidence: float32 [H, W] of a semantic result, if :meth:`Segmenter.predict` was asked for
            it: the score of the pixel's class, divided by the sum of the scores of all classes.
            It is not a calibrated probability.
    """

    task: Task
    size: tuple[int, int]
    classes: tuple[ClassInfo, ...]
    labels: Labels | None = None
    segments: tuple[Segment, ...] = ()
    image: RgbImage | None = None
    time: float | None = None
    confidence: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if (self.labels is None) != (self.task == "instance"):
            raise ValueError("semantic and panoptic results have labels, instance results do not")
        if self.labels is not None and (
            self.labels.shape != self.size or self.labels.dtype not in LABEL_TYPES
        ):
            raise ValueError(f"labels must be uint8 or uint16 of shape {self.size}")
        if self.segments and self.task == "semantic":
            raise ValueError("a semantic result has no segments")
        if self.image is not None and self.image.shape != (*self.size, 3):
            raise ValueError(f"the image must have shape {(*self.size, 3)}")

    def __repr__(self) -> str:
        what = counted(len(self.segments), "segment")
        if self.task == "semantic":
            what = f"{len(self)} class{'' if len(self) == 1 else 'es'}"
        return f"Segmentation({self.task}, {self.size[0]}x{self.size[1]}, {what})"

    @cached_property
    def class_map(self) -> npt.NDArray[np.int32] | None:
        """Class ids, int32 [H, W], -1 for no class (after :meth:`filter`); only semantic.

        Converted from ``labels`` on first use.
        """
        if self.task != "semantic":
            return None
        return to_class_map(self._labels)

    @cached_property
    def segment_map(self) -> npt.NDArray[np.int32] | None:
        """Segment ids, int32 [H, W], -1 for no segment; only panoptic. As :attr:`class_map`."""
        if self.task != "panoptic":
            return None
        return to_segment_map(self._labels)

    @property
    def _labels(self) -> Labels:
        assert self.labels is not None
        return self.labels

    def regions(self) -> tuple[Segment, ...]:
        """The segments; a semantic result has one region per class in the image.

        Its score is the mean ``confidence`` of its pixels, or NaN without a ``confidence``.
        ``len``, iteration and indexing of a result refer to these.
        """
        return self._regions

    @cached_property
    def _regions(self) -> tuple[Segment, ...]:
        if self.task != "semantic":
            return self.segments
        present = [c for c in np.unique(self._labels).tolist() if c < len(self.classes)]
        masks = [self._labels == c for c in present]
        scores = [math.nan] * len(present)
        if self.confidence is not None:
            scores = [float(self.confidence[mask].mean()) for mask in masks]
        found = zip(present, scores, masks, strict=True)
        return tuple(
            Segment.from_mask(i, self.classes[c], score, mask)
            for i, (c, score, mask) in enumerate(found)
        )

    def __len__(self) -> int:
        return len(self.regions())

    def __bool__(self) -> bool:
        """A result is true, even if it has no regions."""
        return True

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.regions())

    @overload
    def __getitem__(self, which: int) -> Segment: ...

    @overload
    def __getitem__(self, which: slice | Sequence[int] | npt.NDArray[Any]) -> Segmentation: ...

    def __getitem__(
        self, which: int | slice | Sequence[int] | npt.NDArray[Any]
    ) -> Segment | Segmentation:
        """A region by its number, or a result with some of the regions.

        Args:
            which: number, slice, numbers, or one boolean for each region.
        """
        regions = self.regions()
        if isinstance(which, int | np.integer):
            return regions[int(which)]
        numbers = np.arange(len(regions))
        if not isinstance(which, slice):
            which = np.asarray(which) if len(which) else numbers[:0]
        return self._only([regions[i] for i in numbers[which].tolist()])

    def filter(
        self,
        *,
        classes: Iterable[str | int] | str | int | None = None,
        min_score: float = 0,
        min_area: int = 0,
        things_only: bool = False,
    ) -> Segmentation:
        """A result with the regions that fulfil all conditions. Ids do not change.

        The pixels of the other regions belong to no segment (panoptic) or no class (semantic).

        Args:
            classes: names or ids of classes; None keeps all.
            min_score: minimum score.
            min_area: minimum number of pixels.
            things_only: leave out stuff.

        Raises:
            UsageError: the model has no such class, or the regions have no scores.
        """
        if min_score > 0 and self.task == "semantic" and self.confidence is None:
            raise UsageError(
                "The regions of this semantic result have no scores.",
                fix="Leave min_score out, or call predict(image, confidence=True).",
            )
        wanted = None if classes is None else find_classes(self.classes, classes)
        return self._only(
            [
                region
                for region in self.regions()
                if (wanted is None or region.class_id in wanted)
                and not region.score < min_score  # NaN: without a score
                and region.area >= min_area
                and (region.thing or not things_only)
            ]
        )

    def _only(self, regions: list[Segment]) -> Segmentation:
        """A result with some of its regions."""
        if self.task == "instance":
            return replace(self, segments=tuple(regions))
        if self.task == "panoptic":
            labels = only_segments(self._labels, [region.id for region in regions])
            segments = tuple(
                replace(r, pixels=partial(np.equal, labels, r.id + 1)) for r in regions
            )
            return replace(self, labels=labels, segments=segments)
        labels = only_classes(self._labels, [region.class_id for region in regions])
        return replace(self, labels=labels)

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """The masks of all regions, boolean [N, H, W], unpacked on each call: N x H x W bytes."""
        empty = np.zeros((0, *self.size), bool)
        return np.stack([region.mask for region in self]) if len(self) else empty

    @property
    def boxes(self) -> npt.NDArray[np.int32]:
        """Bounding boxes (x0, y0, x1, y1) of all regions, int32 [N, 4], x1 and y1 exclusive."""
        return np.array([region.box for region in self], np.int32).reshape(-1, 4)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Scores of all regions, float32 [N]; NaN for regions without a score."""
        return np.array([region.score for region in self], np.float32)

    @property
    def class_ids(self) -> npt.NDArray[np.int32]:
        """Class ids of all regions, int32 [N]."""
        return np.array([region.class_id for region in self], np.int32)

    @property
    def class_names(self) -> list[str]:
        """Class names of all regions."""
        return [region.class_name for region in self]

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Numbers of pixels of all regions, int64 [N]."""
        return np.array([region.area for region in self], np.int64)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO annotations with RLE masks, JSON-serialisable.

        ``category_id`` is the class id of the model; ``bbox`` is (x, y, width, height).
        """
        return conversions.to_coco(self, image_id)

    def to_panoptic(self) -> tuple[Image.Image, list[dict[str, Any]]]:
        """COCO's panoptic format: the id image and its ``segments_info``.

        Ids are segment ids + 1, stored as R + 256 G + 65536 B; 0 is void.

        Raises:
            UsageError: the result is not panoptic.
        """
        return conversions.to_panoptic(self)

    def to_supervision(self) -> supervision.Detections:
        """``supervision.Detections`` with ``data["class_name"]``.

        The masks are a ``supervision.CompactMask`` if the installed version has it (``to_dense()``
        returns an array), otherwise a boolean array [N, H, W].

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        return conversions.to_supervision(self)

    def to_dict(self, tolerance: float = 0, *, masks: str = "polygons") -> dict[str, Any]:
        """Task, size, and the values and mask of each region, JSON-serialisable.

        Args:
            tolerance: see :meth:`Segment.polygons`.
            masks: ``"polygons"``, or ``"rle"`` for the exact masks as COCO RLE.
        """
        return conversions.to_dict(self, tolerance, masks)

    def to_json(self, tolerance: float = 0, *, masks: str = "polygons") -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(tolerance, masks=masks), ensure_ascii=False)

    def to_geojson(self, tolerance: float = 0) -> dict[str, Any]:
        """A GeoJSON FeatureCollection (RFC 7946) of MultiPolygons in pixels, with y down."""
        return conversions.to_geojson(self, tolerance)

    def to_labelme(self, image_path: str, tolerance: float = 0) -> dict[str, Any]:
        """The content of a LabelMe file. Its polygons cannot have holes, which are filled."""
        return conversions.to_labelme(self, image_path, tolerance)

    def to_cvat(self, name: str) -> str:
        """The masks as XML in the format "CVAT for images 1.1"; ``name``: the image in CVAT."""
        return conversions.to_cvat(self, name)

    def to_pandas(self) -> pandas.DataFrame:
        """One row with the values of each region.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return conversions.to_pandas(self)

    def label_image(self) -> Image.Image:
        """The result as a lossless image: class ids (semantic) or COCO panoptic ids.

        Class ids are stored in 8 bits, or in 16 bits for more than 255 classes.

        Raises:
            UsageError: the result is an instance result, whose masks can overlap.
        """
        return conversions.label_image(self)

    def overlay(
        self,
        image: ImageSource | None = None,
        style: OverlayStyle | None = None,
        *,
        alpha: float | None = None,
        masks: bool | None = None,
        outlines: bool | None = None,
        boxes: bool | None = None,
        labels: bool | None = None,
        scores: bool | None = None,
        legend: bool | None = None,
        palette: Palette | None = None,
        font_scale: float | None = None,
        min_score: float | None = None,
    ) -> Image.Image:
        """Draw the segments over the image (RGB). The overlay has the size of the image.

        With ``legend=True`` it is wider.

        Args:
            image: any input of load_image(); None takes the predicted image.
            style: the options, see :class:`OverlayStyle`; None takes its defaults. The other
                arguments are its fields, and replace those of ``style``.

        Raises:
            UsageError: the image is not known or has another size than the result, or an option
                has a wrong value.
        """
        fields = {
            "alpha": alpha, "masks": masks, "outlines": outlines, "boxes": boxes,
            "labels": labels, "scores": scores, "legend": legend, "palette": palette,
            "font_scale": font_scale, "min_score": min_score,
        }  # fmt: skip
        changed: dict[str, Any] = {k: v for k, v in fields.items() if v is not None}
        style = replace(style or OverlayStyle(), **changed)
        pixels = self.image if image is None else load_image(image)
        if pixels is None or pixels.shape != (*self.size, 3):
            raise UsageError(
                "The overlay needs the image, which is not stored in this result."
                if pixels is None
                else f"The image must have shape {[*self.size, 3]}, got {list(pixels.shape)}.",
                fix="Pass the predicted image: result.overlay(image).",
            )
        return Image.fromarray(draw_overlay(self, pixels, style))

    plot = overlay  # its name in other libraries

    def show(self, image: ImageSource | None = None, style: OverlayStyle | None = None) -> None:
        """Show :meth:`overlay` in the image viewer of the system, or in the notebook.

        Raises:
            UsageError: see :meth:`overlay`.
            MissingDependencyError: there is no image viewer, or no display.
        """
        show_picture(self.overlay(image, style))

    def save(self, path: str | Path) -> None:
        """Write the result in the format of the suffix.

        ``.png``, ``.jpg``: :meth:`overlay`. ``.json``: :meth:`to_coco` with size and task.
        ``.npz``: maps, boxes, scores, class ids and bit-packed masks. For a lossless label
        image use :meth:`label_image`.

        Raises:
            UsageError: the suffix is not supported, or the image for the overlay is not known.
            OutputError: the file cannot be written.
        """
        conversions.save(self, Path(path))

    def _repr_png_(self) -> bytes:
        image = np.zeros((*self.size, 3), np.uint8) if self.image is None else self.image
        buffer = io.BytesIO()
        self.overlay(image).save(buffer, "PNG")
        return buffer.getvalue()
