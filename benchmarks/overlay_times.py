"""Time `result.overlay()` of a drawn scene with 10 stuff regions and 10 things.

    python benchmarks/overlay_times.py --rounds 30

For a comparison with another checkout, set PYTHONPATH to its folder.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import cv2
import numpy as np

from eomt_deploy.catalog import class_lists
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment

SIZES = ((480, 640), (1080, 1920))
STUFF, THINGS = 10, 10


def scene(height: int, width: int) -> Segmentation:
    """A panoptic result: cells of a Voronoi diagram, and ellipses on them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    seeds = rng.uniform(0, 1, (STUFF, 2)) * (width, height)
    distances = np.stack([(x - a) ** 2 + (y - b) ** 2 for a, b in seeds])
    labels = (distances.argmin(axis=0) + 1).astype(np.uint8)
    for number in range(STUFF + 1, STUFF + THINGS + 1):
        centre = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        angle = rng.uniform(0, 180)
        cv2.ellipse(labels, centre, (width // 14, height // 9), angle, 0, 360, number, -1)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    classes = class_lists()["coco_panoptic"]
    stuff = [info for info in classes if not info.thing][:STUFF]
    things = [info for info in classes if info.thing][:THINGS]
    segments = tuple(
        Segment.from_mask(index, info, 0.9, labels == index + 1)
        for index, info in enumerate(stuff + things)
    )
    return Segmentation("panoptic", (height, width), classes, labels, segments, image)


def results(panoptic: Segmentation) -> dict[str, Segmentation]:
    """The scene as a result of each task."""
    size, classes, image = panoptic.size, panoptic.classes, panoptic.image
    instance = Segmentation("instance", size, classes, None, panoptic.segments, image)
    semantic = Segmentation("semantic", size, classes, panoptic.labels, (), image)
    return {"panoptic": panoptic, "instance": instance, "semantic": semantic}


def milliseconds(result: Segmentation, rounds: int) -> float:
    """Median time of drawing; each round takes a new result, without cached properties."""
    times = []
    for _ in range(rounds + 1):
        fresh = replace(result)
        start = time.perf_counter()
        fresh.overlay()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[1:]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print("| image | task | median |\n|---|---|---|")
    for height, width in SIZES:
        for task, result in results(scene(height, width)).items():
            print(f"| {width}x{height} | {task} | {milliseconds(result, rounds):.1f} ms |")


if __name__ == "__main__":
    main()
