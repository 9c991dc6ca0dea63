"""Report of a suite: raw samples and the values computed from them, to and from JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eomt_deploy.benchmarking.machine.roofline import Peak, arithmetic, tflops
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
from eomt_deploy.benchmarking.paper.suite_file import Suite, SuiteRow
from eomt_deploy.errors import UsageError

SCHEMA = 1
KIND = "suite"
LONGEST = 1e9
"""Maximum valid time of one call in milliseconds, 11 days."""


@dataclass(frozen=True)
class Measurement:
    """One row of the suite in one runtime, scope and batch size.

    Attributes:
        row: name of the row.
        scope: ``network``, ``network+copies`` or ``end-to-end``.
        batch: batch size in images.
        group: index of the group; the rows of a group were measured in the same rounds.
        samples: milliseconds of each call.
        host: milliseconds until each call returned; empty if they equal ``samples``.
        prepare_seconds: time to build, export and compile the network.
        remark: note for readers of the numbers.
        state: state of the GPU during the measurement, see
            :class:`eomt_deploy.benchmarking.machine.state.GpuState`.
    """

    row: str
    runtime: str
    device: str
    precision: str
    scope: str
    batch: int
    group: int
    samples: tuple[float, ...]
    host: tuple[float, ...] = ()
    verdict: Verdict = field(default_factory=Verdict)
    prepare_seconds: float = 0.0
    remark: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def percentile(self, percent: float) -> float:
        """Milliseconds that ``percent`` of the calls did not exceed."""
        return percentile(self.samples, percent)

    @property
    def timed(self) -> bool:
        """Whether all samples are valid times."""
        return clock_problem(self.samples) is None

    @property
    def fps(self) -> float:
        """Images per second at the median time; NaN if that is not a valid time."""
        return rate(self.batch, self.percentile(50))

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Properties that must be equal to compare two rows."""
        return self.runtime, self.device, self.precision, self.scope, self.batch


@dataclass(frozen=True)
class Skipped:
    """A row that was not measured in a runtime, and the reason."""

    row: str
    runtime: str
    reason: str


@dataclass(frozen=True)
class Size:
    """Number of parameters of a row as measured, and multiply-adds per image."""

    params: int
    macs: int


@dataclass
class SuiteReport:
    """Results of one run of a suite on one machine.

    Attributes:
        suite: the suite, with the paper's numbers.
        rows: selected rows, with the size and backbone that were measured.
        environment: see :func:`eomt_deploy.benchmarking.machine.environment.environment`.
        settings: requested settings.
        sizes: parameters and multiply-adds, by row.
        peaks: results of :func:`eomt_deploy.benchmarking.machine.roofline.probe`, by precision.
        notes: notes for readers of the numbers, one per line.
    """

    suite: Suite
    rows: tuple[SuiteRow, ...]
    environment: dict[str, Any]
    settings: dict[str, Any]
    sizes: dict[str, Size] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> SuiteRow:
        """The row of that name, with the size and backbone that were measured."""
        return next(row for row in self.rows if row.name == name)

    def base_of(self, found: Measurement) -> Measurement | None:
        """The base row in the same runtime, scope and batch size; preferably of the same rounds."""
        name = self.suite.base_of(self.row(found.row))
        alike = [m for m in self.measurements if m.row == name and m.key == found.key]
        return next((m for m in alike if m.group == found.group), alike[0] if alike else None)

    def ratio(self, found: Measurement) -> Ratio | None:
        """Speedup over the base row; None for the base row itself, or if it was not measured."""
        base = self.base_of(found)
        if base is None or base.row == found.row:
            return None
        return _ratio(base, found)

    def runtime_ratio(self, found: Measurement) -> Ratio | None:
        """Speedup over the same row in the first runtime; None if there is nothing to compare."""
        first = self.settings["runtimes"][0]
        alike = [
            m
            for m in self.measurements
            if (m.row, m.scope, m.batch, m.precision) == (found.row, found.scope, found.batch,
            found.precision) and m.runtime == first
        ]  # fmt: skip
        base = next((m for m in alike if m.group == found.group), alike[0] if alike else None)
        return None if base is None or found.runtime == first else _ratio(base, found)

    def tflops(self, found: Measurement) -> float | None:
        """TFLOP/s of the network; None if it was not counted, or not timed alone."""
        network = found.scope != "end-to-end" and found.timed
        size = self.sizes.get(found.row) if network else None
        return tflops(size.macs * found.batch, found.percentile(50)) if size else None

    def peak_share(self, found: Measurement) -> float | None:
        """Share of the device's measured peak in this precision, 0 to 1; None if unknown."""
        rate, peak = self.tflops(found), self.peaks.get(arithmetic(found.precision))
        return rate / peak.tflops if rate is not None and peak else None

    def paper_ratio(self, name: str) -> float | None:
        """The paper's speedup of a row over its base; None if it reports none."""
        row = self.row(name)
        base = next(r for r in self.suite.rows if r.name == self.suite.base_of(row))
        if row.paper.fps is None or base.paper.fps is None or base.name == name:
            return None
        return row.paper.fps / base.paper.fps

    def check(self) -> None:
        """Check that all values for tables and plots are present and valid.

        Raises:
            Exception: a value is missing or invalid; the type depends on the value.
        """
        for name in ("cpu", "cores", "date"):
            self.environment[name]
        for name in ("runtimes", "scopes"):
            self.settings[name][0]
        for found in self.measurements:
            if not all(0 < sample < LONGEST for sample in found.samples):
                raise ValueError(f"a sample of {found.row} is not a valid time")
        from eomt_deploy.benchmarking import tables  # imported here, because it imports this file

        json.dumps(self.to_dict())
        tables.markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "suite": self.suite.to_dict(),
            "environment": self.environment,
            "settings": self.settings,
            "peaks": {name: peak.to_dict() for name, peak in self.peaks.items()},
            "notes": self.notes,
            "rows": [self._row_dict(row) for row in self.rows],
            "measurements": [self._measurement_dict(found) for found in self.measurements],
            "served": [served.to_dict() for served in self.served],
            "skipped": [vars(skipped) for skipped in self.skipped],
        }

    def _row_dict(self, row: SuiteRow) -> dict[str, Any]:
        size = self.sizes.get(row.name)
        return {
            "name": row.name,
            "step": row.step,
            "backbone": row.backbone,
            "size": list(row.size),
            "params": size.params if size else None,
            "macs": size.macs if size else None,
        }

    def _measurement_dict(self, found: Measurement) -> dict[str, Any]:
        ratio, other = self.ratio(found), self.runtime_ratio(found)
        return {
            **{
                name: getattr(found, name)
                for name in (
                    "row", "runtime", "device", "precision", "scope", "batch", "group",
                    "remark", "state",
                )
            },
            "prepare_seconds": round(found.prepare_seconds, 2),
            "unit": "ms",
            "samples": [rounded(sample, 4) for sample in found.samples],
            "host": [rounded(sample, 4) for sample in found.host],
            **{f"p{p}": rounded(found.percentile(p), 4) for p in PERCENTILES},
            "cv": rounded(variation(found.samples), 4),
            "fps": rounded(found.fps, 4),
            "tflops": rounded(self.tflops(found), 5),
            "peak_share": rounded(self.peak_share(found), 5),
            "ratio": ratio.to_dict() if ratio else None,
            "runtime_ratio": other.to_dict() if other else None,
            "verdict": found.verdict.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SuiteReport:
        """A report from :meth:`to_dict`; values that depend on samples are computed again."""
        suite = Suite.from_dict(data["suite"])
        sized = {entry["name"]: entry for entry in data["rows"]}
        rows = suite.select()
        report = cls(
            suite=suite,
            rows=tuple(_changed(row, sized[row.name]) for row in rows if row.name in sized),
            environment=data["environment"],
            settings=data["settings"],
            sizes={
                name: Size(entry["params"], entry["macs"])
                for name, entry in sized.items()
                if entry["params"] is not None
            },
            peaks={
                name: Peak(name, entry["tflops"], entry["side"])
                for name, entry in data["peaks"].items()
            },
            served=[Served.from_dict(entry) for entry in data["served"]],
            skipped=[Skipped(**entry) for entry in data["skipped"]],
            notes=list(data["notes"]),
        )
        for entry in data["measurements"]:
            plain = {
                name: entry[name]
                for name in Measurement.__dataclass_fields__
                if name not in ("samples", "host", "verdict")
            }
            report.measurements.append(
                Measurement(
                    **plain,
                    samples=tuple(entry["samples"]),
                    host=tuple(entry["host"]),
                    verdict=Verdict.from_dict(entry["verdict"]),
                )
            )
        return report


def read_reports(path: Path) -> list[SuiteReport]:
    """Read the suite reports of a JSON file: one, or the sections of ``benchmarks/gpu_paper.py``.

    Raises:
        UsageError: the file cannot be read, or contains no suite report.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        entries = data["sections"] if data.get("kind") == "sections" else [data]
        wanted = [e for e in entries if isinstance(e, dict) and e.get("kind") == KIND]
        if wanted and any(entry["schema"] != SCHEMA for entry in wanted):
            raise UsageError(
                f"{path} must have schema {SCHEMA}, got "
                f"{', '.join(sorted({str(entry['schema']) for entry in wanted}))}.",
                why="Another version of eomt-deploy wrote it.",
                fix="Read it with the version that wrote it, or measure again.",
            )
        reports = [SuiteReport.from_dict(entry) for entry in wanted]
        for report in reports:
            report.check()
        facts = [e for e in entries if isinstance(e, dict) and e.get("kind") == "facts"]
        for entry in facts if reports else ():
            left = [f"not measured for lack of time: {what}" for what in entry.get("left_out", ())]
            failed = [f"a section failed: {t.splitlines()[-1]}" for t in entry.get("failed", ())]
            reports[0].notes += [*left, *failed]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    except (
        ValueError, LookupError, TypeError, AttributeError, StopIteration, ArithmeticError,
        RecursionError,
    ) as error:  # fmt: skip
        raise UsageError(
            f"{path} is not a valid suite report ({type(error).__name__}: {str(error)[:200]}).",
            fix="Create one with `eomt-deploy bench --suite NAME --json FILE`.",
        ) from error
    if not reports:
        raise UsageError(
            f"{path} does not contain a suite report.",
            fix="Create one with `eomt-deploy bench --suite NAME --json FILE`.",
        )
    return reports


def _changed(row: SuiteRow, entry: dict[str, Any]) -> SuiteRow:
    height, width = entry["size"]
    return replace(row, size=(height, width), backbone=entry["backbone"])


def _ratio(base: Measurement, found: Measurement) -> Ratio | None:
    if not (base.timed and found.timed):
        return None
    paired = base.group == found.group and len(base.samples) == len(found.samples)
    return speedup(base.samples, found.samples, paired=paired)
