"""What a benchmark found: rows of raw samples, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """Samples of one stage of one engine, in milliseconds."""

    engine: str
    backend: str
    device: str
    stage: str
    samples: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Milliseconds that ``percent`` of the calls did not exceed."""
        return float(np.percentile(self.samples, percent))

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float(np.std(self.samples) / np.mean(self.samples))

    @property
    def fps(self) -> float:
        """Calls per second at the median."""
        return 1000 / self.percentile(50)

    def to_dict(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "device": self.device,
            "stage": self.stage,
            "unit": "ms",
            "samples": [round(sample, 4) for sample in self.samples],
            **{f"p{p}": round(self.percentile(p), 4) for p in (50, 90, 95, 99)},
            "cv": round(self.cv, 4),
            "fps": round(self.fps, 3),
        }


@dataclass(frozen=True)
class Report:
    """All rows of one run on one machine.

    Attributes:
        environment: see :func:`eomt_deploy.benchmarking.environment.environment`.
        image: picture that was used, and its size in words.
        rows: one per engine and stage.
        unstable_cv: coefficient of variation from which a row is not to be believed.
    """

    environment: dict[str, Any]
    image: str
    rows: tuple[Row, ...]
    unstable_cv: float

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the numbers."""
        notes = [
            f"{row.engine}, {row.stage}: unstable (variation {row.cv:.0%}, "
            f"limit {self.unstable_cv:.0%})"
            for row in self.rows
            if row.cv > self.unstable_cv
        ]
        load, cores = self.environment["load_average"], self.environment["cores"]
        if load is not None and load > 0.5 * cores:
            notes.append(f"the machine was busy before the start (load {load} on {cores} cores)")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: ``schema``, ``environment``, ``image``, ``rows``, ``warnings``."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "image": self.image,
            "rows": [row.to_dict() for row in self.rows],
            "warnings": self.warnings,
        }
