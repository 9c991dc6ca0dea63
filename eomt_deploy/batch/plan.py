"""The plan of a run: which image belongs to which shard.

It is stored in the output folder as Parquet files, with one row group per shard. So a worker reads
only the paths of its shard, and the list can be larger than the memory of the driver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eomt_deploy.batch.places import Place
from eomt_deploy.errors import OutputError

FOLDER = "plan"
SHARDS_PER_FILE = 1000
"""A worker reads the footer of a file, which grows with the number of row groups."""


@dataclass(frozen=True)
class Plan:
    """Number of images and shards, and a hash of all paths in their order."""

    images: int
    shards: int
    sha256: str


def make_plan(paths: Iterable[str], shard_size: int, place: Place | None) -> Plan:
    """Divide images into shards of ``shard_size`` in their order, and store the plan.

    Args:
        place: the output folder; None only computes the plan.
    """
    digest = hashlib.sha256()
    shards = images = 0
    groups = _groups(iter(paths), shard_size)
    while part := list(islice(groups, SHARDS_PER_FILE)):
        for group in part:
            for path in group:
                digest.update(path.encode(errors="surrogateescape") + b"\0")
        if place is not None:
            place.write(_name(shards), _parquet(part))
        images += sum(map(len, part))
        shards += len(part)
    return Plan(images, shards, digest.hexdigest())


def paths_of(place: Place, shard: int) -> list[str]:
    """The images of one shard.

    Raises:
        OutputError: the plan was damaged.
    """
    from pyarrow import parquet

    name = _name(shard)
    try:
        with place.open(name) as file:
            table = parquet.ParquetFile(file).read_row_group(shard % SHARDS_PER_FILE)
        return [value.decode(errors="surrogateescape") for value in table["path"].to_pylist()]
    except (OSError, ValueError, LookupError) as error:
        raise OutputError(
            f"{place.path(name)} cannot be read: {error}.", fix="Choose another output folder."
        ) from error


def _name(shard: int) -> str:
    return f"{FOLDER}/{shard // SHARDS_PER_FILE:06d}.parquet"


def _groups(paths: Iterator[str], size: int) -> Iterator[list[str]]:
    while group := list(islice(paths, size)):
        yield group


def _parquet(groups: list[list[str]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    # Bytes, since a file name on Linux need not be valid text.
    schema: Any = pa.schema([("path", pa.binary())])
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in groups:
            encoded = [path.encode(errors="surrogateescape") for path in group]
            writer.write_table(pa.table({"path": encoded}, schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content
