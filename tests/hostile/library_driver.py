"""Call the functions of ``eomt.h`` in a sanitized library with random and damaged arguments.

`test_kernels.py` runs it in a separate process: ``python library_driver.py LIBRARY SEED COUNT``.
Each case is printed before it runs.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from random import Random

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder: it has a mutations.py, too
import c_library
from kernel_driver import logits, side
from mutations import VALUES, changed, paths

from eomt_deploy.processing import compiled

TASKS = (("semantic", "windows"), ("instance", "letterbox"), ("panoptic", "letterbox"))


def description(rng: Random) -> dict:
    """A valid description of a small model."""
    task, rule = rng.choice(TASKS)
    patch = rng.choice((1, 2, 8, 16))
    least = -(-8 // patch)
    height, width = (patch * rng.randint(least, max(least, 64 // patch)) for _ in range(2))
    classes = [
        {"id": i, "name": rng.choice(("", "x", "\U0001f600", "a" * 255)), "thing": i % 2 == 0,
         "color": [i % 256, 0, 255]}
        for i in range(rng.choice((1, 2, 5, 40, 300)))
    ]  # fmt: skip
    backbone = {"family": "x", "width": 1, "depth": 1, "heads": 1, "mlp": "gelu", "registers": 0,
                "parameters": 0}  # fmt: skip
    return {
        "name": "x", "task": task, "image_size": [height, width], "patch_size": patch,
        "num_queries": rng.choice((1, 3, 17, 120)), "num_blocks": 0,
        "num_upscale": rng.randint(0, patch.bit_length() - 1), "classes": classes, "resize": rule,
        "thresholds": {"score": rng.random()}, "backbone": backbone, "schema_version": 1,
    }  # fmt: skip


def damaged(rng: Random, data: dict) -> bytes:
    """The description with a wrong field, or with wrong bytes."""
    if rng.random() < 0.5:
        return changed(data, rng.choice(list(paths(data))), rng.choice(VALUES)).encode()
    text = bytearray(json.dumps(data, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.randint(1, 5)):
        text[rng.randrange(len(text))] = rng.choice((*b'{}[]",:\\u0e-', rng.randrange(256)))
    return bytes(text[: rng.choice((len(text), rng.randrange(len(text))))])


def read_everything(result: c_library.Handle) -> None:
    labels = c_library.labels(result)
    for index in range(-1, result.get("count") + 1):
        for name in ("class", "score", "area"):
            result.get(name, index)
        c_library.array(result.get("runs", index), "u4", result.get("run_count", index), 2)
        if 0 <= index < result.get("count"):
            area = result.get("area", index)
            assert int(c_library.mask(result, index).sum()) == area
    assert labels is None or labels.size


def one_case(rng: Random) -> None:
    data = description(rng)
    try:
        c_library.read_model(damaged(rng, data))
    except c_library.CallError as error:
        if error.code != c_library.WRONG_MODEL:
            raise
    model = c_library.read_model(json.dumps(data))
    size = side(rng), side(rng)
    print(data["task"], data["image_size"], size, len(data["classes"]), flush=True)
    try:
        geometry = c_library.plan(model, *size)
    except c_library.CallError as error:
        if error.code != c_library.WRONG_IMAGE:
            raise
        return
    channels = rng.choice((3, 4))
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    format = rng.choice((0, 1)) + 2 * (channels == 4)
    c_library.preprocess(model, geometry, image, format, rng.randrange(3))
    count, queries = geometry.get("inputs"), model.get("queries")
    made = (
        logits(rng, count, queries, model.get("classes") + 1),
        logits(rng, count, queries, model.get("mask_height"), model.get("mask_width")),
    )
    thresholds = [rng.choice((-1.0, 0.0, 0.5, 1.0)) for _ in range(3)]
    try:
        result = c_library.postprocess(model, geometry, *made, *thresholds)
    except c_library.CallError as error:
        if error.code != c_library.NOT_FINITE:
            raise
        return
    del model, geometry  # a result does not refer to them
    read_everything(result)


def main(library: str, seed: int, count: int) -> None:
    loaded = ctypes.CDLL(library)
    compiled.library.cache_clear()
    compiled.library = lambda: loaded  # type: ignore[assignment]
    rng = Random(seed)
    for _ in range(count):
        one_case(rng)
    print("all done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
