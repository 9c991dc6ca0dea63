"""The summary of a batch run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eomt_deploy.batch.shards import Totals
from eomt_deploy.files import GENERATOR
from eomt_deploy.spec import ModelSpec

SUMMARY = "summary.json"


@dataclass(frozen=True)
class BatchReport:
    """What a run did.

    Attributes:
        images: number of images in the output.
        kept: how many of them earlier runs had processed.
        errors: id of the error -> number of images without a result.
        segments: class name -> number of segments.
        pixels: class name -> number of their pixels.
        shards: number of shards.
        seconds: duration of this run, without the start and the end of Ray.
        notes: lines for the user, e.g. about files that were left out.
    """

    images: int
    kept: int
    errors: Mapping[str, int]
    segments: Mapping[str, int]
    pixels: Mapping[str, int]
    shards: int
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> int:
        """Number of images without a result."""
        return sum(self.errors.values())

    @property
    def images_per_second(self) -> float:
        """Throughput of this run."""
        return (self.images - self.kept) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "images": self.images, "kept": self.kept, "without_result": self.failed,
            "errors": dict(self.errors), "shards": self.shards,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "classes": {
                name: {"segments": count, "pixels": self.pixels[name]}
                for name, count in self.segments.items()
            },
        }  # fmt: skip


def make_report(
    totals: Totals, spec: ModelSpec, *, kept: int, seconds: float, notes: Iterable[str] = ()
) -> BatchReport:
    """The report of all shards, with the names of the classes."""
    names = {info.id: info.name for info in spec.classes}
    return BatchReport(
        totals.images, kept, dict(totals.errors),
        {names[i]: totals.segments[i] for i in sorted(totals.segments)},
        {names[i]: totals.pixels[i] for i in sorted(totals.pixels)},
        len(totals.shards), seconds, tuple(notes),
    )  # fmt: skip


def summary(report: BatchReport, settings: Mapping[str, Any]) -> bytes:
    """The content of summary.json."""
    data = {"generator": GENERATOR, "schema": 1, "settings": settings, **report.to_dict()}
    return json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n"
