"""Places for labels: inside the image, and not over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eomt_deploy.drawing.regions import Map, Region

GRID = 480
"""Places are searched in a map of at most about this many cells per side."""
SMALLEST_THING, SMALLEST_STUFF = 0.0003, 0.003
"""Minimum area of a region with a label, as a share of the image."""
SMALLEST_WITH_LINE = 0.0008
"""Minimum area of a thing with a line to its label: many lines hide a crowd of small things."""
LINE_LENGTHS = (1, 2)
"""Lengths of lines from a label to its region, in heights of a label."""
DIRECTIONS = tuple(
    (float(np.cos(angle)), float(np.sin(angle)))
    for angle in np.deg2rad([-90, -45, -135, 0, 180, 45, 135, 90])
)

Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1, x1 and y1 exclusive."""


@dataclass(frozen=True)
class Place:
    """The place of a label.

    Attributes:
        region: index of the region.
        rectangle: the label.
        target: (x, y) of the region, to which a line is drawn; None if the label is close enough.
    """

    region: int
    rectangle: Rectangle
    target: tuple[int, int] | None = None


def place_labels(
    labels: Map, regions: Sequence[Region], sizes: Sequence[tuple[int, int] | None]
) -> list[Place]:
    """Places for labels. Things come first, since they have less space.

    Args:
        labels: map of the regions.
        regions: see :func:`find_regions`.
        sizes: (width, height) of each label, None for a region without one.
    """
    board = _Board(labels, regions)
    places = []
    for index in sorted(range(len(regions)), key=lambda i: not regions[i].thing):
        region, size = regions[index], sizes[index]
        smallest = SMALLEST_THING if region.thing else SMALLEST_STUFF
        if size is None or region.area < smallest * labels.size:
            continue
        place = board.place(index, region, size)
        if place is not None:
            places.append(place)
    return places


class _Board:
    """The labels that have a place, on a map with fewer cells."""

    def __init__(self, labels: Map, regions: Sequence[Region]) -> None:
        self.height, self.width = labels.shape
        self.step = max(1, -(-max(labels.shape) // GRID))
        self.cells = np.ascontiguousarray(labels[:: self.step, :: self.step])
        self.taken = np.zeros(self.cells.shape, np.uint8)
        is_thing = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
        is_thing[[region.number for region in regions if region.thing]] = True
        self.things = is_thing[self.cells]

    def place(self, index: int, region: Region, size: tuple[int, int]) -> Place | None:
        """The first free place, and mark it."""
        for rectangle, target, alone in self._candidates(region, size):
            if rectangle is None:
                continue
            cells = self._cells_of(rectangle)
            if self.taken[cells].any():
                continue
            if alone and (self.things[cells] & (self.cells[cells] != region.number)).any():
                continue
            self.taken[cells] = 1
            return Place(index, rectangle, target)
        return None

    def _candidates(
        self, region: Region, size: tuple[int, int]
    ) -> Iterator[tuple[Rectangle | None, tuple[int, int] | None, bool]]:
        """Rectangle, target of a line, and whether it must not cover another thing."""
        width, height = size
        middle, inside = self._centre(region, size)
        if middle is None:
            if region.box is None:
                return
            middle = (region.box[0] + region.box[2]) // 2, (region.box[1] + region.box[3]) // 2
        x, y = middle
        centre = self._moved_inside(x - width // 2, y - height // 2, size)
        if inside:
            yield centre, None, False
        if not region.thing:
            if region.area > width * height:
                yield centre, None, True
            return
        x0, y0, x1, y1 = region.box or (x, y, x, y)
        large = y1 - y0 > 2 * height and region.area > width * height
        if large:
            yield centre, None, True
        left, gap = (x0 + x1 - width) // 2, max(1, height // 8)
        for position in (
            (left, y0 - height - gap), (left, y1 + gap), (x1 + gap, y - height // 2),
            (x0 - width - gap, y - height // 2),
        ):  # fmt: skip
            moved = self._moved_inside(*position, size)
            # Inside the image, but not moved over the region.
            if moved and not _overlap(moved, (x0, y0, x1, y1)):
                yield moved, None, True
        if large:
            yield centre, None, False
        if region.area < SMALLEST_WITH_LINE * self.height * self.width:
            return
        for length in LINE_LENGTHS:
            for right, down in DIRECTIONS:
                middle_x = x + right * ((x1 - x0) / 2 + length * height + width / 2)
                middle_y = y + down * ((y1 - y0) / 2 + length * height)
                position = round(middle_x - width / 2), round(middle_y - height / 2)
                if self._moved_inside(*position, size) == (
                    *position, position[0] + width, position[1] + height,
                ):  # fmt: skip
                    yield self._moved_inside(*position, size), (x, y), True

    def _centre(self, region: Region, size: tuple[int, int]) -> tuple[tuple[int, int] | None, bool]:
        """The pixel of a region with the most free space around it, and whether the label fits.

        None if labels cover the region, or it is smaller than a cell.
        """
        if region.box is None:
            own = self.cells == region.number
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            if not len(rows):
                return None, False
            top, bottom, first, last = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        else:
            x0, y0, x1, y1 = region.box
            first, top, last, bottom = (
                x0 // self.step, y0 // self.step, -(-x1 // self.step), -(-y1 // self.step)
            )  # fmt: skip
        free = (self.cells[top:bottom, first:last] == region.number) & (
            self.taken[top:bottom, first:last] == 0
        )
        width, height = size
        # Compressed in width, the label is a square: the chessboard distance is its free space.
        compressed = max(1, min(free.shape[1], round(free.shape[1] * height / width)))
        (x, y), space = _roomiest(free, compressed)
        inside = space * self.step >= height / 2
        if not inside:  # then the widest part of the region in any direction
            (x, y), space = _roomiest(free, free.shape[1])
        if not space:
            return None, False
        return (int((first + x) * self.step), int((top + y) * self.step)), inside

    def _moved_inside(self, x: int, y: int, size: tuple[int, int]) -> Rectangle | None:
        """A rectangle, moved into the image; None if it is larger than the image."""
        width, height = size
        if width > self.width or height > self.height:
            return None
        x = min(max(0, int(x)), self.width - width)
        y = min(max(0, int(y)), self.height - height)
        return x, y, x + width, y + height

    def _cells_of(self, rectangle: Rectangle) -> tuple[slice, slice]:
        x0, y0, x1, y1 = rectangle
        step = self.step
        return slice(y0 // step, -(-y1 // step)), slice(x0 // step, -(-x1 // step))


def _roomiest(free: npt.NDArray[np.bool_], columns: int) -> tuple[tuple[float, float], float]:
    """(x, y) of the cell that is farthest from the next one that is not free, and the distance.

    Args:
        free: boolean [H, W].
        columns: width to which the map is compressed before.
    """
    space = cv2.resize(
        free.view(np.uint8), (columns, free.shape[0]), interpolation=cv2.INTER_NEAREST
    )
    space = cv2.copyMakeBorder(space, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(space, cv2.DIST_C, 3)
    most = float(distance.max())
    ys, xs = np.nonzero(distance >= most * 0.97)
    # Of several, the one in the middle.
    middle = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    x = (float(xs[middle]) - 0.5) * free.shape[1] / columns
    return (x, float(ys[middle]) - 0.5), most


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
