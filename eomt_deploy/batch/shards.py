"""Finished shards: Parquet files with one row per image.

A shard is written at once, so a file with its name means that all its images are done. There is no
separate list of finished shards that could disagree with the files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from eomt_deploy.batch.places import Place
from eomt_deploy.errors import OutputError
from eomt_deploy.files import GENERATOR

FOLDER = "shards"
KEY = b"eomt_deploy"
"""Key of our facts in the metadata of a Parquet file."""
READERS = 32
"""Footers that are read at the same time: in an object store each takes some 50 ms."""


@dataclass(frozen=True)
class ShardFacts:
    """What the footer of a shard contains.

    Attributes:
        shard: its number.
        run: identity of the run's settings.
        images: number of rows.
        errors: id of the error -> number of images without a result.
        classes: class id -> number of segments and of their pixels.
        seconds: time from the start of the shard to its end.
    """

    shard: int
    run: str
    images: int
    errors: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Number of images without a result."""
        return sum(self.errors.values())

    def to_json(self) -> str:
        return json.dumps({"generator": GENERATOR, **asdict(self)})

    @classmethod
    def from_json(cls, text: bytes) -> ShardFacts:
        """Raises:
        ValueError: the text was not written by :meth:`to_json`.
        """
        try:
            data = json.loads(text)
            classes = {int(k): (int(v[0]), int(v[1])) for k, v in data["classes"].items()}
            errors = {str(k): int(v) for k, v in data["errors"].items()}
            numbers = int(data["shard"]), str(data["run"]), int(data["images"])
            return cls(*numbers, errors, classes, float(data["seconds"]))
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"not the facts of a shard: {error}") from error


@dataclass
class Totals:
    """The sum of the facts of many shards; the facts themselves would need too much memory.

    Attributes:
        shards: numbers of the shards.
        images: number of their images.
        errors: id of the error -> number of images without a result.
        segments: class id -> number of segments.
        pixels: class id -> number of their pixels.
    """

    shards: set[int] = field(default_factory=set)
    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)

    def add(self, facts: ShardFacts) -> None:
        """Add a shard, unless it is included already: Ray can report one twice."""
        if facts.shard in self.shards:
            return
        self.shards.add(facts.shard)
        self.images += facts.images
        self.errors.update(facts.errors)
        for class_id, (count, area) in facts.classes.items():
            self.segments[class_id] += count
            self.pixels[class_id] += area

    @property
    def failed(self) -> int:
        """Number of images without a result."""
        return sum(self.errors.values())


def facts_of(shard: int, run: str, rows: Iterable[Mapping[str, Any]], seconds: float) -> ShardFacts:
    """The facts of a shard with these rows."""
    images = 0
    errors: Counter[str] = Counter()
    classes: dict[int, tuple[int, int]] = {}
    for row in rows:
        images += 1
        if row["error_id"] is not None:
            errors[row["error_id"]] += 1
        for segment in row["segments"]:
            count, pixels = classes.get(segment["class_id"], (0, 0))
            classes[segment["class_id"]] = (count + 1, pixels + segment["area"])
    return ShardFacts(shard, run, images, dict(errors), classes, round(seconds, 3))


@cache
def schema() -> Any:
    """The columns of a shard; `docs/batch.md` explains them."""
    import pyarrow as pa

    rle = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])
    segment = pa.struct(
        [
            ("id", pa.int32()),
            ("class_id", pa.int32()),
            ("class_name", pa.string()),
            ("thing", pa.bool_()),
            ("score", pa.float64()),
            ("area", pa.int64()),
            ("box", pa.list_(pa.int32(), 4)),
            ("rle", rle),
        ]
    )
    return pa.schema(
        [
            ("index", pa.int64()),
            ("path", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("segments", pa.list_(segment)),
            ("labels", pa.string()),
            ("overlay", pa.string()),
            ("prepare_ms", pa.float32()),
            ("network_ms", pa.float32()),
            ("finish_ms", pa.float32()),
            ("error", pa.string()),
            ("error_id", pa.string()),
        ]
    )


def name_of(shard: int) -> str:
    return f"{FOLDER}/{shard:09d}.parquet"


def write(place: Place, facts: ShardFacts, rows: list[dict[str, Any]]) -> None:
    """Write a shard at once.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist(rows, schema=schema())
    table = table.replace_schema_metadata({KEY: facts.to_json()})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    place.write(name_of(facts.shard), sink.getvalue().to_pybytes())


def finished(place: Place, run: str, names: Iterable[str]) -> Totals:
    """The sum of the finished shards among the files of the folder ``shards``.

    Args:
        run: identity of the settings that they must have; others are left out.
        names: names of the files inside the output folder.
    """
    totals = Totals()
    with ThreadPoolExecutor(READERS) as pool:
        for facts in pool.map(lambda name: _read(place, name), names):
            if facts is not None and facts.run == run:
                totals.add(facts)
    return totals


def _read(place: Place, name: str) -> ShardFacts | None:
    """The facts of a file; None if it is not a complete shard with its own name."""
    from pyarrow import parquet

    try:
        with place.open(name) as file:
            metadata = parquet.ParquetFile(file).metadata
        facts = ShardFacts.from_json(metadata.metadata[KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if name == name_of(facts.shard) and metadata.num_rows == facts.images else None


def check_complete(totals: Totals, present: Iterable[str], shards: int, images: int) -> None:
    """Check at the end that every image is in exactly one shard.

    Args:
        totals: all shards that were finished.
        present: names of the files that exist now.
        shards: number of shards in the plan.
        images: number of images in the plan.

    Raises:
        OutputError: files are missing, e.g. because somebody removed them during the run.
    """
    missing = set(map(name_of, range(shards))) - set(present)
    if missing or totals.shards != set(range(shards)) or totals.images != images:
        raise OutputError(
            f"The output has {shards - len(missing)} of {shards} shards, and {totals.images} of "
            f"{images} images were processed.",
            why="Files were removed or replaced while the run was going on.",
            fix="Run the same command again: it processes the missing shards.",
        )
