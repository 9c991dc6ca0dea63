"""One segment of a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from hotcoco import mask as coco_mask
from PIL import Image

from eomt_deploy import conversions
from eomt_deploy.conversions import Polygon
from eomt_deploy.masks import Box, Rle, RunMask, decode_mask, encode_mask
from eomt_deploy.pixel_labels import Labels
from eomt_deploy.sources import RgbImage
from eomt_deploy.spec import ClassInfo


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a panoptic or instance result.

    Attributes:
        id: its value in ``segment_map`` (panoptic) or its rank by score from 0 (instance).
        class_id: column of the class logits.
        class_name: name of the class.
        thing: whether the class is a thing (countable) or stuff.
        score: 0 to 1; NaN for a semantic region without a confidence.
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

    def polygons(self, tolerance: float = 0) -> list[list[Polygon]]:
        """The outlines of the mask: for each connected part its outer ring, then its holes.

        Args:
            tolerance: maximum distance in pixels between a simplified and the exact outline; 0
                keeps every corner.

        Returns:
            rings int32 [K, 2], (x, y) of the pixels at the corners. The pixels of an outer ring
            belong to the mask; so do those of a hole, which surround it.
        """
        return conversions.polygons_of(self.mask, tolerance)

    def crop(self, image: RgbImage, *, transparent: bool = True) -> Image.Image:
        """The part of an image inside the bounding box.

        Args:
            image: uint8 RGB [H, W, 3].
            transparent: make the pixels outside the mask transparent (RGBA).
        """
        x0, y0, x1, y1 = self.box
        picture = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
        if transparent:
            picture.putalpha(Image.fromarray(self.mask[y0:y1, x0:x1].astype(np.uint8) * 255))
        return picture

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Boolean [H, W] at image size, unpacked on each call."""
        return self.pixels()

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO RLE. Encoding is slow, so it happens on first use and is cached."""
        return encode_mask(self.mask)
