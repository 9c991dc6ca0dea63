"""Segmentation: one result type for all tasks, with conversions to other formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as coco_mask
from PIL import Image

from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.files import GENERATOR, PICTURE_FORMATS, save_picture, write_atomically
from eomt_deploy.masks import Box, Rle, RunMask, decode_mask, encode_mask
from eomt_deploy.sources import ImageSource, RgbImage, load_image
from eomt_deploy.spec import ClassInfo, Task

if TYPE_CHECKING:
    import supervision

Labels = npt.NDArray[np.unsignedinteger[Any]]
LABEL_TYPES = (np.uint8, np.uint16)
VOID = -1
VOID_LABEL = 255
"""Conventional void label of 8-bit label images; more classes than this need 16 bits."""
SHOWN_SCORE = 0.5
"""Instances below this score are in the result, but not in the overlay."""


def label_type(count: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type of ``Segmentation.labels`` with values below ``count``."""
    return np.uint8 if count <= 256 else np.uint16


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a panoptic or instance result.

    Attributes:
        id: its value in ``segment_map`` (panoptic) or its rank by score from 0 (instance).
        class_id: column of the class logits.
        class_name: name of the class.
        thing: whether the class is a thing (countable) or stuff.
        score: 0 to 1.
        area: number of pixels.
        box: bounding box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask.
        pixels: function that returns the mask.
    """

    id: int
    class_id: int
    class_name: str
    thing: bool
    score: float
    area: int
    box: Box
    pixels: Callable[[], npt.NDArray[np.bool_]] = field(repr=False)

    @classmethod
    def from_rle(cls, segment_id: int, info: ClassInfo, score: float, rle: Rle) -> Segment:
        x, y, width, height = (int(v) for v in coco_mask.to_bbox(rle))
        area = int(coco_mask.area(rle))
        box = (x, y, x + width, y + height)
        return cls._of(segment_id, info, score, area, box, partial(decode_mask, rle))

    @classmethod
    def from_mask(
        cls,
        segment_id: int,
        info: ClassInfo,
        score: float,
        mask: npt.NDArray[np.bool_] | RunMask,
    ) -> Segment:
        runs = mask if isinstance(mask, RunMask) else RunMask.from_mask(mask)
        return cls._of(segment_id, info, score, runs.area, runs.box, runs.unpack)

    @classmethod
    def from_map(
        cls,
        segment_id: int,
        info: ClassInfo,
        score: float,
        labels: Labels,
        area: int,
        box: Box,
    ) -> Segment:
        """The segment ``segment_id`` of panoptic ``labels`` [H, W], which are not copied."""
        pixels = partial(np.equal, labels, segment_id + 1)
        return cls._of(segment_id, info, score, area, box, pixels)

    @classmethod
    def _of(
        cls,
        segment_id: int,
        info: ClassInfo,
        score: float,
        area: int,
        box: Box,
        pixels: Callable[[], npt.NDArray[np.bool_]],
    ) -> Segment:
        return cls(segment_id, info.id, info.name, info.thing, score, area, box, pixels)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Boolean [H, W] at image size, unpacked on each call."""
        return self.pixels()

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO RLE. Encoding is slow, so it happens on first use and is cached."""
        return encode_mask(self.mask)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of one image.

    Attributes:
        task: ``semantic``, ``instance`` or ``panoptic``.
        size: (H, W) of the image.
        classes: all classes of the model.
        labels: unsigned integers [H, W] of the smallest possible type. Semantic: class ids.
            Panoptic: segment ids + 1, 0 for no segment. Instance: None, because instances overlap.
        segments: the segments; empty for semantic. Instances are sorted by score and can overlap.
        image: the image, uint8 RGB [H, W, 3], not copied; None if it is not known.
    """

    task: Task
    size: tuple[int, int]
    classes: tuple[ClassInfo, ...]
    labels: Labels | None = None
    segments: tuple[Segment, ...] = ()
    image: RgbImage | None = None

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
        what = f"{len(self.segments)} segments"
        if self.task == "semantic":
            what = f"{len(np.unique(self._labels))} classes"
        return f"Segmentation({self.task}, {self.size[0]}x{self.size[1]}, {what})"

    @cached_property
    def class_map(self) -> npt.NDArray[np.int32] | None:
        """Class ids, int32 [H, W]; only semantic. Converted from ``labels`` on first use."""
        return self._labels.astype(np.int32) if self.task == "semantic" else None

    @cached_property
    def segment_map(self) -> npt.NDArray[np.int32] | None:
        """Segment ids, int32 [H, W], -1 for no segment; only panoptic. As :attr:`class_map`."""
        if self.task != "panoptic":
            return None
        ids = self._labels.astype(np.int32)
        ids -= 1  # faster than one step that also converts
        return ids

    @property
    def _labels(self) -> Labels:
        assert self.labels is not None
        return self.labels

    def regions(self) -> tuple[Segment, ...]:
        """The segments; a semantic result has one region with score 1 per class in the image."""
        if self.task != "semantic":
            return self.segments
        present = np.unique(self._labels)
        return tuple(
            Segment.from_mask(i, self.classes[c], 1.0, self._labels == c)
            for i, c in enumerate(present)
        )

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO annotations with RLE masks, JSON-serialisable.

        ``category_id`` is the class id of the model; ``bbox`` is (x, y, width, height).
        """
        return [
            {
                "image_id": image_id,
                "category_id": segment.class_id,
                "category_name": segment.class_name,
                "isthing": int(segment.thing),
                "iscrowd": 0,
                "score": segment.score,
                "area": segment.area,
                "bbox": _xywh(segment),
                "segmentation": {
                    "size": list(self.size),
                    "counts": segment.rle["counts"].decode("ascii"),
                },
            }
            for segment in self.regions()
        ]

    def to_panoptic(self) -> tuple[Image.Image, list[dict[str, Any]]]:
        """COCO's panoptic format: the id image and its ``segments_info``.

        Ids are segment ids + 1, stored as R + 256 G + 65536 B; 0 is void.

        Raises:
            UsageError: the result is not panoptic.
        """
        if self.task != "panoptic":
            raise UsageError(
                f"to_panoptic() needs a panoptic result, this one is {self.task}.",
                fix="Use to_coco() instead.",
            )
        ids = self._labels
        channels = np.zeros((*self.size, 3), np.uint8)
        channels[..., 0] = ids & 255
        channels[..., 1] = ids >> 8
        info = [
            {
                "id": segment.id + 1,
                "category_id": segment.class_id,
                "category_name": segment.class_name,
                "isthing": int(segment.thing),
                "iscrowd": 0,
                "score": segment.score,
                "area": segment.area,
                "bbox": _xywh(segment),
            }
            for segment in self.segments
        ]
        return Image.fromarray(channels), info

    def to_supervision(self) -> supervision.Detections:
        """Convert to ``supervision.Detections`` with masks and ``data["class_name"]``.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            import supervision as sv
        except ImportError as error:
            raise MissingDependencyError(
                "to_supervision() needs the package supervision.", fix="pip install supervision"
            ) from error
        regions = self.regions()
        if not regions:
            return sv.Detections.empty()
        return sv.Detections(
            xyxy=np.array([r.box for r in regions], np.float32),
            mask=np.stack([r.mask for r in regions]),
            confidence=np.array([r.score for r in regions], np.float32),
            class_id=np.array([r.class_id for r in regions]),
            data={"class_name": np.array([r.class_name for r in regions])},
        )

    def label_image(self) -> Image.Image:
        """The result as a lossless image: class ids (semantic) or COCO panoptic ids.

        Class ids are stored in 8 bits, or in 16 bits for more than 255 classes.

        Raises:
            UsageError: the result is an instance result, whose masks can overlap.
        """
        if self.task == "semantic":
            dtype = np.uint8 if len(self.classes) <= VOID_LABEL else np.uint16
            return Image.fromarray(self._labels.astype(dtype, copy=False))
        return self.to_panoptic()[0]

    def overlay(
        self,
        image: ImageSource | None = None,
        *,
        alpha: float = 0.55,
        labels: bool = True,
        min_score: float = SHOWN_SCORE,
    ) -> Image.Image:
        """Draw the segments over the image (RGB); small images are enlarged.

        Args:
            image: any input of load_image(); None takes the predicted image.
            alpha: opacity of the colours, 0 to 1.
            labels: whether to draw class names.
            min_score: minimum score of an instance to be drawn.

        Raises:
            UsageError: the image is not known, or has another size than the result.
        """
        from eomt_deploy.drawing import draw_overlay

        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha must be between 0 and 1, got {alpha}.")
        pixels = self.image if image is None else load_image(image)
        if pixels is None or pixels.shape != (*self.size, 3):
            raise UsageError(
                "The overlay needs the image, which is not stored in this result."
                if pixels is None
                else f"The image must have shape {[*self.size, 3]}, got {list(pixels.shape)}.",
                fix="Pass the predicted image: result.overlay(image).",
            )
        return draw_overlay(self, pixels, alpha=alpha, labels=labels, min_score=min_score)

    def save(self, path: str | Path) -> None:
        """Write the result in the format of the suffix.

        ``.png``, ``.jpg``: :meth:`overlay`. ``.json``: :meth:`to_coco` with size and task.
        ``.npz``: maps, boxes, scores, class ids and bit-packed masks. For a lossless label
        image use :meth:`label_image`.

        Raises:
            UsageError: the suffix is not supported, or the image for the overlay is not known.
            OutputError: the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in PICTURE_FORMATS:
            save_picture(self.overlay(), path)
        elif suffix == ".json":
            content = {
                "generator": GENERATOR,
                "task": self.task,
                "size": list(self.size),
                "annotations": self.to_coco(),
            }
            write_atomically(path, json.dumps(content).encode())
        elif suffix == ".npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, generator=np.array(GENERATOR), **self._arrays())
            write_atomically(path, buffer.getvalue())
        else:
            raise UsageError(
                f"A result cannot be saved as {suffix or 'a file without suffix'}.",
                fix="Use .png or .jpg (overlay), .json (COCO) or .npz (arrays).",
            )

    def _arrays(self) -> dict[str, Any]:
        if self.task == "semantic":
            return {"class_map": self.class_map}
        masks = [np.packbits(segment.mask) for segment in self.segments]
        arrays: dict[str, Any] = {
            "size": np.array(self.size),
            "boxes": np.array([s.box for s in self.segments], np.int32).reshape(-1, 4),
            "scores": np.array([s.score for s in self.segments], np.float32),
            "class_ids": np.array([s.class_id for s in self.segments], np.int32),
            "masks_packed": np.stack(masks) if masks else np.zeros((0, 0), np.uint8),
        }
        if self.task == "panoptic":
            arrays["segment_map"] = self.segment_map
        return arrays

    def _repr_png_(self) -> bytes:
        image = np.zeros((*self.size, 3), np.uint8) if self.image is None else self.image
        buffer = io.BytesIO()
        self.overlay(image).save(buffer, "PNG")
        return buffer.getvalue()


def _xywh(segment: Segment) -> list[int]:
    x0, y0, x1, y1 = segment.box
    return [x0, y0, x1 - x0, y1 - y0]
