"""Procedural panoptic scenes: textured stuff, occluding things, exact ground truth.

Every scene is a pure function of (split, seed, index, height, width): any one of them can be made
again without making the others, on any machine, so no picture has to be stored or downloaded.

    python scenes.py OUT --count 300 --seed 7               # mixed sizes, COCO panoptic format
    python scenes.py OUT --count 10 --seed 7 --size 160 160
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from shapes import draw_thing, place_thing
from textures import Float, global_look, paint_stuff


@dataclass(frozen=True)
class Category:
    """One class: its name, whether its instances are counted, and its colour (RGB) in pictures."""

    name: str
    thing: bool
    color: tuple[int, int, int]


CATEGORIES: tuple[Category, ...] = (
    Category("ball", True, (0, 220, 230)),
    Category("crate", True, (250, 40, 210)),
    Category("star", True, (120, 60, 240)),
    Category("tree", True, (255, 90, 80)),
    Category("ring", True, (90, 230, 60)),
    Category("capsule", True, (255, 150, 0)),
    Category("sky", False, (150, 200, 255)),
    Category("water", False, (30, 80, 180)),
    Category("grass", False, (130, 200, 80)),
    Category("sand", False, (230, 205, 150)),
    Category("wall", False, (150, 110, 100)),
)
THINGS = tuple(i for i, c in enumerate(CATEGORIES) if c.thing)
SKY, WATER, GRASS, SAND, WALL = (i for i, c in enumerate(CATEGORIES) if not c.thing)

# The split is part of the key of the random stream, so a held-out scene cannot coincide with a
# training scene whatever --seed either of them was given: the sets are disjoint by construction
# and a score on held-out scenes measures new scenes, not remembered ones.
SPLITS = {"train": 0, "held-out": 1}

# Heights and widths of the held-out scenes: landscape, portrait and square, so that the letterbox
# enlarges, shrinks and pads.
MIXED_SIZES = ((160, 160), (256, 256), (200, 280), (320, 240), (240, 320), (144, 192), (280, 180))


@dataclass(frozen=True)
class Segment:
    id: int  # >= 1, the value in Scene.segment_ids
    category_id: int  # index into CATEGORIES
    isthing: bool


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # uint8 RGB [H, W, 3]
    segment_ids: np.ndarray  # int32 [H, W], 0 is void
    segments: tuple[Segment, ...]


def make_scene(split: str, seed: int, index: int, size: tuple[int, int]) -> Scene:
    """Make the scene with this key at `size` (height, width), in pixels."""
    height, width = size
    rng = np.random.default_rng([SPLITS[split], seed, index])
    stuff = _stuff_map(rng, height, width)
    shade = np.zeros((height, width), np.float32)
    colors = np.zeros((256, 1, 3), np.float32)
    for category in np.flatnonzero(np.bincount(stuff.ravel())).tolist():
        texture, colors[category] = paint_stuff(CATEGORIES[category].name, rng, height, width)
        np.copyto(shade, texture, where=stuff == category)
    # Training waits for scenes, so the operations on whole canvases are OpenCV's: 4 times faster.
    lit = cv2.LUT(cv2.cvtColor(stuff, cv2.COLOR_GRAY2RGB), colors)
    canvas: Float = np.asarray(lit, np.float32)
    canvas += cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB)

    things = np.zeros((height, width), np.int32)  # 0: no thing, k: the k-th one placed
    placed: list[int] = []
    areas = np.zeros(8)
    visible = np.zeros(8)
    for _ in range(int(rng.integers(1, 8))):  # at most 7, see `areas`
        # A favourite class comes up more often, so several instances of one class are common.
        category = THINGS[int(rng.integers(len(THINGS)))]
        if placed and rng.random() < 0.3:
            category = placed[-1]
        thing = place_thing(CATEGORIES[category].name, rng, height, width)
        rows, columns = thing.window
        area = np.count_nonzero(thing.mask)
        left = visible - np.bincount(things[rows, columns][thing.mask], minlength=9)[1:]
        # Occlusion is wanted, annihilation is not: nobody could label what is nearly hidden.
        if (left < 0.4 * areas).any() or area < 40:
            continue
        draw_thing(canvas, thing, rng)
        visible = left
        visible[len(placed)] = areas[len(placed)] = area
        placed.append(category)
        things[rows, columns][thing.mask] = len(placed)

    image = global_look(canvas, rng)
    return _label(image, stuff, things, placed)


def _stuff_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stuff classes as wavy, tilted bands, sometimes with a blob: uint8 [H, W]."""
    top = SKY if rng.random() < 0.6 else WALL
    below = [int(c) for c in rng.permutation([WATER, GRASS, SAND])]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    y = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    stuff = np.full((height, width), top, np.uint8)
    heights = [rng.uniform(0.2, 0.55)]
    if rng.random() < 0.55:
        heights.append(heights[0] + rng.uniform(0.2, 0.35))
    for level, category in zip(heights, below, strict=False):
        tilt, wave, phase = rng.uniform(-0.25, 0.25), rng.uniform(0, 0.04), rng.uniform(0, 6.28)
        edge = level + tilt * x + wave * np.sin(rng.uniform(4, 16) * x + phase)
        stuff[y > edge] = category
    if rng.random() < 0.35:  # a pond, a lawn or a sand pit in the lower half
        radius = rng.uniform(0.15, 0.3)
        bumps = 1 + rng.uniform(0, 0.2) * np.sin(3 * np.arctan2(y - 0.75, x) + rng.uniform(0, 6.28))
        distance = np.hypot((x - rng.uniform(-0.35, 0.35)) * 0.7, y - rng.uniform(0.65, 0.9))
        stuff[distance < radius * bumps * 0.8] = below[-1]
    return stuff


def _label(image: np.ndarray, stuff: np.ndarray, things: np.ndarray, placed: list[int]) -> Scene:
    segment_ids = np.zeros(stuff.shape, np.int32)
    segments: list[Segment] = []
    for category in range(len(CATEGORIES)):
        if category in THINGS:
            masks = [things == k + 1 for k, c in enumerate(placed) if c == category]
            smallest = 1.0
        else:
            masks = [(stuff == category) & (things == 0)]
            smallest = 0.004 * stuff.size  # a sliver of stuff is void, as an annotator would do
        for mask in masks:
            if np.count_nonzero(mask) >= smallest:
                segments.append(Segment(len(segments) + 1, category, category in THINGS))
                segment_ids[mask] = len(segments)
    return Scene(image, segment_ids, tuple(segments))


def mixed_size(seed: int, index: int) -> tuple[int, int]:
    """Height and width of the index-th held-out scene when no size is asked for."""
    pick = np.random.default_rng([SPLITS["held-out"], seed, index, 1]).integers(len(MIXED_SIZES))
    return MIXED_SIZES[int(pick)]


def coco_categories() -> list[dict[str, Any]]:
    return [
        {"id": i, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
        for i, c in enumerate(CATEGORIES)
    ]


def write_classes(path: Path) -> None:
    """The class list that goes with a checkpoint: what its tensors cannot say."""
    classes = [{"name": c.name, "thing": c.thing, "color": list(c.color)} for c in CATEGORIES]
    lines = ",\n".join("  " + json.dumps(c) for c in classes)
    path.write_text(f"[\n{lines}\n]\n")


def write_coco_panoptic(
    out: Path, count: int, seed: int, size: tuple[int, int] | None = None, split: str = "held-out"
) -> None:
    """Write images/*.png, panoptic/*.png (id = R + 256 G + 65536 B) and panoptic.json."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "panoptic").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(split, seed, index, size or mixed_size(seed, index))
        name = f"{index:06d}.png"
        height, width = scene.segment_ids.shape
        ids = scene.segment_ids
        blue_green_red = np.stack([ids >> 16, (ids >> 8) & 255, ids & 255], -1).astype(np.uint8)
        for folder, picture in (("images", scene.image[:, :, ::-1]), ("panoptic", blue_green_red)):
            if not cv2.imwrite(str(out / folder / name), picture):
                raise OSError(f"could not write {out / folder / name}")
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        segments_info = []
        for segment in scene.segments:
            mask = (ids == segment.id).astype(np.uint8)
            segments_info.append(
                {
                    "id": segment.id,
                    "category_id": segment.category_id,
                    "area": int(mask.sum()),
                    "bbox": list(cv2.boundingRect(mask)),  # x, y, width, height
                    "iscrowd": 0,
                }
            )
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments_info})
    document = {"images": images, "annotations": annotations, "categories": coco_categories()}
    (out / "panoptic.json").write_text(json.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write procedural scenes as COCO panoptic.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: mixed")
    parser.add_argument("--split", choices=sorted(SPLITS), default="held-out")
    args = parser.parse_args()
    if args.count < 1 or args.seed < 0 or (args.size and min(args.size) < 32):
        parser.error("--count must be 1 or more, --seed 0 or more, --size 32 or more")
    if (args.out / "panoptic.json").exists():
        parser.error(f"{args.out} holds scenes already; name a new folder")
    size = (args.size[0], args.size[1]) if args.size else None
    write_coco_panoptic(args.out, args.count, args.seed, size, args.split)


if __name__ == "__main__":
    main()
