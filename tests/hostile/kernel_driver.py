"""Call the native kernels of a sanitized library with random geometries, sizes and logits.

`test_kernels.py` runs it in a separate process, since a sanitizer ends the process at an error:
``python kernel_driver.py LIBRARY SEED COUNT``. Each case is printed before it runs.
"""

from __future__ import annotations

import ctypes
import sys
from random import Random

import numpy as np

from eomt_deploy.errors import EomtDeployError
from eomt_deploy.processing import geometry as geo
from eomt_deploy.processing import pixels
from eomt_deploy.processing.geometry import Geometry

Size = tuple[int, int]


def side(rng: Random) -> int:
    return rng.choice((1, 2, 3, 5, 16, 31, 64, rng.randint(1, 300)))


def logits(rng: Random, *shape: int) -> np.ndarray:
    """Logits that are smooth, noisy, huge, equal or not finite."""
    generator = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(("noise", "noise", "blobs", "huge", "equal", "nan", "inf", "mixed"))
    values = generator.standard_normal(shape, np.float32) * np.float32(5)
    if kind == "blobs":
        values = np.repeat(values[..., :1], shape[-1], axis=-1)
    elif kind == "huge":
        values *= np.float32(1e37)
    elif kind == "equal":
        values[:] = rng.choice((0.0, -100.0, 100.0, 1e-38))
    elif kind in ("nan", "inf", "mixed"):
        odd = {"nan": [np.nan], "inf": [np.inf, -np.inf], "mixed": [np.nan, np.inf, -np.inf, 3e38]}
        places = generator.random(shape) < rng.choice((1e-3, 0.1, 1.0))
        values[places] = generator.choice(np.array(odd[kind], np.float32), int(places.sum()))
    return values


def windows(rng: Random) -> tuple[Geometry, Size]:
    """Size of a semantic image, which can have many windows, and of its mask logits."""
    patch = rng.choice((1, 2, 4, 8, 14, 16))
    inside = tuple(patch * rng.randint(1, max(1, 96 // patch)) for _ in range(2))
    image = (side(rng), side(rng))
    if rng.random() < 0.3:  # the maximum length
        image = (rng.randint(1, 4), rng.randint(50, 250))
        image = image if rng.random() < 0.5 else image[::-1]
    plan = geo.plan(image, (inside[0], inside[1]), "windows")
    scale = rng.choice((1, 2, 4))
    mask = tuple(max(1, length // patch * min(scale, patch)) for length in inside)
    return plan, (mask[0], mask[1])


def letterbox(rng: Random) -> tuple[Geometry, Size]:
    inside = (side(rng), side(rng))
    plan = geo.plan((side(rng), side(rng)), inside, "letterbox")
    divisor = rng.choice((1, 2, 4, 8))
    return plan, (max(1, inside[0] // divisor), max(1, inside[1] // divisor))


def semantic(rng: Random) -> None:
    plan, mask = windows(rng)
    queries, classes = rng.choice((1, 2, 15, 16, 17, 100, 200)), rng.choice((1, 2, 19, 25, 150))
    number = plan.num_inputs
    if number * queries * mask[0] * mask[1] > 3_000_000:
        queries = 1
    print(f"semantic {plan.image_size} in {plan.input_size}, {number} windows, masks {mask}, "
          f"{queries} queries, {classes} classes", flush=True)  # fmt: skip
    probabilities = logits(rng, number, queries, classes)
    pixels.softmax(probabilities)
    found = pixels.classify_pixels(
        probabilities, logits(rng, number, queries, *mask), plan, threads=rng.choice((1, 2))
    )
    assert found.shape == plan.image_size
    if np.isfinite(probabilities).all():
        assert found.min() >= 0
        assert found.max() < classes


def panoptic(rng: Random) -> None:
    plan, mask = letterbox(rng)
    count = rng.choice((1, 2, 7, 50, 200))
    print(f"panoptic {plan.image_size} in {plan.input_size}, masks {mask}, {count}", flush=True)
    resize = pixels.mask_resize(mask, plan)
    scores = np.abs(logits(rng, count))
    owners, _ = pixels.paint_queries(
        logits(rng, count, *mask), resize, scores, rng.choice((0.0, 0.5, 1.0)), rng.choice((1, 2))
    )
    assert owners.shape == plan.image_size
    assert owners.min() >= -1
    assert owners.max() < count
    segment_of = np.arange(-1, count, dtype=np.int32)[::-1].copy()
    labels, _ = pixels.label_segments(owners, segment_of, rng.choice((1, 2)))
    assert labels.shape == plan.image_size


def instance(rng: Random) -> None:
    plan, mask = letterbox(rng)
    print(f"instance {plan.image_size} in {plan.input_size}, masks {mask}", flush=True)
    resize = pixels.mask_resize(mask, plan)
    queries = [rng.randrange(3) for _ in range(rng.choice((0, 1, 5)))]
    found = pixels.measure_masks(logits(rng, 3, *mask), queries, resize, rng.choice((1, 2)))
    for query_mask, inside in found:
        pixels_on = query_mask.unpack()
        assert pixels_on.shape == plan.image_size
        assert pixels_on.sum() == query_mask.area
        assert 0 <= inside <= query_mask.area


def main(library: str, seed: int, count: int) -> None:
    loaded = ctypes.CDLL(library)
    pixels.library = lambda: loaded  # type: ignore[assignment]
    for number in range(count):
        rng = Random(f"kernels:{seed}:{number}")
        print(f"{number}: ", end="", flush=True)
        try:
            with np.errstate(all="ignore"):
                rng.choice((semantic, semantic, panoptic, instance))(rng)
        except EomtDeployError as error:
            print(f"refused: {error.what}", flush=True)
    print("all done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
