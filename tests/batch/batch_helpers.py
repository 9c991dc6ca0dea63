"""What the tests of batch jobs share: images, results, and the processes of Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from eomt_deploy.masks import decode_mask


def write_images(folder: Path, count: int) -> list[Path]:
    """Small images with structure and different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        pixels = np.kron(coarse, np.ones((8 + number % 5, 9 + number % 3, 1), np.uint8))
        paths.append(folder / f"{number:05}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all shards, in the order of the images."""
    found = [
        row
        for path in sorted((output / "shards").glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]
    return sorted(found, key=lambda row: row["index"])


def check_complete(output: Path, paths: list[Path]) -> list[dict[str, Any]]:
    """Check that each image is in the result exactly once; returns the rows."""
    found = rows(output)
    assert [row["index"] for row in found] == list(range(len(paths)))
    assert [row["path"] for row in found] == [str(path) for path in paths]
    return found


def check_equal(row: dict[str, Any], result: Any) -> None:
    """Check that a row contains exactly this result."""
    assert (row["height"], row["width"]) == result.size
    assert len(row["segments"]) == len(result)
    for found, region in zip(row["segments"], result, strict=True):
        counts = found["rle"]["counts"].encode()
        mask = decode_mask({"size": found["rle"]["size"], "counts": counts})
        assert np.array_equal(mask, region.mask)
        wanted = (region.id, region.class_id, region.class_name, region.thing, region.area)
        names = ("id", "class_id", "class_name", "thing", "area")
        assert tuple(found[name] for name in names) == wanted
        assert tuple(found["box"]) == region.box
        assert found["score"] == (None if np.isnan(region.score) else region.score)


def processes(*, ancestor: int) -> dict[int, str]:
    """Names of all processes below one, by their id."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = {}
    for process in parents:
        above = process
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and process != ancestor:
            found[process] = names.get(process, "")
    return found


def workers(name: str, *, ancestor: int | None = None) -> list[int]:
    """Ids of the Ray workers with this name, e.g. ``MapWorker`` or ``Decoder``."""
    found = processes(ancestor=ancestor or os.getpid())
    return sorted(process for process, text in found.items() if text.startswith(f"ray::{name}"))
