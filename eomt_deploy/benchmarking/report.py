"""Report of an engine benchmark: raw samples and the values computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eomt_deploy.benchmarking.measure.scenarios import Served
from eomt_deploy.benchmarking.measure.statistics import (
    PERCENTILES,
    Ratio,
    clock_problem,
    percentile,
    rate,
    rounded,
    speedup,
    variation,
)
from eomt_deploy.benchmarking.measure.verdict import Verdict

SCHEMA = 1
KIND = "stages"


@dataclass(frozen=True)
class Row:
    """Samples of one stage of one engine, in milliseconds.

    Attributes:
        batch: batch size of a call.
        score: score of the engine in percent, if the user gave it.
        images: number of images that were measured in turn: sample i is of image i modulo this.
    """

    engine: str
    backend: str
    device: str
    stage: str
    samples: tuple[float, ...]
    batch: int = 1
    verdict: Verdict = field(default_factory=Verdict)
    score: float | None = None
    images: int = 1

    def percentile(self, percent: float) -> float:
        """Milliseconds that ``percent`` of the calls did not exceed."""
        return percentile(self.samples, percent)

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean, of the times of one image."""
        return variation(self.samples, self.images)

    @property
    def timed(self) -> bool:
        """Whether all samples are valid times."""
        return clock_problem(self.samples) is None

    @property
    def fps(self) -> float:
        """Images per second at the median time; NaN if that is not a valid time."""
        return rate(self.batch, self.percentile(50))

    def to_dict(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "device": self.device,
            "stage": self.stage,
            "batch": self.batch,
            "unit": "ms",
            "samples": [rounded(sample, 4) for sample in self.samples],
            **{f"p{p}": rounded(self.percentile(p), 4) for p in PERCENTILES},
            "cv": rounded(self.cv, 4),
            "fps": rounded(self.fps, 3),
            "score": self.score,
            "verdict": self.verdict.to_dict(),
        }


@dataclass(frozen=True)
class Report:
    """All rows of one run on one machine.

    Attributes:
        environment: see :func:`eomt_deploy.benchmarking.machine.environment.environment`.
        image: name and size of the image, e.g. ``street.jpg (480x640)``, or the number and the
            sizes of several images.
        rows: one per engine, stage and batch size, measured in the same rounds.
        unstable_cv: maximum coefficient of variation of a stable row.
        served: results of the server scenario.
        images: names of the measured images. They are measured in turn, from the first measured
            round on.
    """

    environment: dict[str, Any]
    image: str
    rows: tuple[Row, ...]
    unstable_cv: float
    served: tuple[Served, ...] = ()
    images: tuple[str, ...] = ()

    def ratio(self, row: Row) -> Ratio | None:
        """Speedup over the first engine at the same stage and batch size.

        None for the first engine itself, or if one of the two has invalid times.
        """
        base = next(r for r in self.rows if (r.stage, r.batch) == (row.stage, row.batch))
        if base.engine == row.engine or not (base.timed and row.timed):
            return None
        return speedup(base.samples, row.samples)

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the numbers."""
        notes = [
            f"{row.engine}, {row.stage}: unstable (variation {row.cv:.0%}, "
            f"limit {self.unstable_cv:.0%})"
            for row in self.rows
            if row.timed and row.cv > self.unstable_cv
        ]
        load, cores = self.environment["load_average"], self.environment["cores"]
        if load is not None and load > 0.5 * cores:
            notes.append(f"the machine was busy before the start (load {load} on {cores} cores)")
        others = {
            reason.text: None
            for row in self.rows
            for reason in row.verdict.reasons
            if reason.kind != "unstable"
        }
        served = {f"{s.row}: {s.doubt}": None for s in self.served if s.doubt}
        return [*notes, *others, *served]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: ``schema``, ``environment``, ``image``, ``rows``, ``warnings``."""
        rows = []
        for row in self.rows:
            ratio = self.ratio(row)
            rows.append(row.to_dict() | {"ratio": ratio.to_dict() if ratio else None})
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "environment": self.environment,
            "image": self.image,
            "images": list(self.images),
            "rows": rows,
            "served": [served.to_dict() for served in self.served],
            "warnings": self.warnings,
        }
