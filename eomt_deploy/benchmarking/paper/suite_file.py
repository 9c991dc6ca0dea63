"""What a suite measures: one table of the paper, as a file of ``benchmarks/`` says it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

from eomt_deploy.data_files import entries, read_toml
from eomt_deploy.errors import EomtDeployError, UsageError
from eomt_deploy.spec import Task

TASK_OF_METRIC: dict[str, Task] = {"PQ": "panoptic", "mIoU": "semantic", "AP": "instance"}


@dataclass(frozen=True)
class Paper:
    """What the paper printed of a row: millions of parameters, GMACs an image, images a second,
    and the score of ``metric`` in percent."""

    params_m: float | None = None
    gmacs: float | None = None
    fps: float | None = None
    score: float | None = None
    metric: str = "PQ"


@dataclass(frozen=True)
class SuiteRow:
    """One network of a suite.

    Attributes:
        name: what ``--rows`` takes.
        label: what tables show.
        step: of the ladder, 0 to 5; None for a network that we only quote.
        backbone: see :data:`eomt_deploy.benchmarking.paper.ladder.BACKBONES`.
        size: (H, W) of the network's input, pixels.
        queries, classes: Q and C.
        inputs: network inputs of one image: the windows of a semantic model.
        base: row that its ratio refers to, where it is not the suite's.
        paper: what the paper printed.
    """

    name: str
    label: str
    step: int | None = None
    backbone: str = "large"
    size: tuple[int, int] = (640, 640)
    queries: int = 200
    classes: int = 133
    inputs: int = 1
    base: str | None = None
    paper: Paper = Paper()

    @property
    def task(self) -> Task:
        return TASK_OF_METRIC.get(self.paper.metric, "panoptic")


@dataclass(frozen=True)
class Suite:
    """One file of ``benchmarks/`` with ``kind = "suite"``.

    Attributes:
        source: where the paper's numbers stand.
        device: what they were measured on.
        base: row that ratios refer to.
        precision: on a GPU; a CPU computes in fp32 unless it is told otherwise.
    """

    name: str
    summary: str
    source: str
    device: str
    base: str
    rows: tuple[SuiteRow, ...]
    precision: str = "fp16"

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        unknown = {self.base, *(row.base for row in self.rows if row.base)} - set(names)
        if len(set(names)) < len(names) or unknown:
            raise ValueError(f"rows must have different names, and bases be among them: {names}")

    def base_of(self, row: SuiteRow) -> str:
        """Name of the row that the ratio of ``row`` refers to."""
        return row.base or self.base

    def select(
        self,
        names: tuple[str, ...] = (),
        size: tuple[int, int] | None = None,
        backbone: str | None = None,
    ) -> tuple[SuiteRow, ...]:
        """The rows that we can build, or those named and their bases.

        Args:
            names: of rows; none takes all.
            size, backbone: instead of each row's own.

        Raises:
            UsageError: a name that is no row, or that is only quoted.
        """
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{self.name} has no row {name!r}.", fix=f"Its rows: {', '.join(known)}."
                )
            if known[name].step is None:
                raise UsageError(
                    f"{name} stands in {self.name} only as the paper's number.",
                    fix="Name a row of the ladder.",
                )
        wanted = set(names) | {self.base_of(known[name]) for name in names}
        rows = [r for r in self.rows if r.step is not None and (not names or r.name in wanted)]
        return tuple(
            dataclasses.replace(row, size=size or row.size, backbone=backbone or row.backbone)
            for row in rows
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON; :meth:`from_dict` reads it again."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Suite:
        """A suite from the tables of its TOML file, or from :meth:`to_dict`.

        Raises:
            TypeError, ValueError: keys or values that do not fit.
        """
        rows = []
        for entry in data["rows"]:
            values = dict(entry)
            values["size"] = tuple(values.get("size", (640, 640)))
            values["paper"] = Paper(**values.get("paper", {}))
            rows.append(SuiteRow(**values))
        return cls(**{**data, "rows": tuple(rows)})


@cache
def suites() -> dict[str, Suite]:
    """The entries of ``benchmarks/`` that `bench --suite` runs, by name: tables of the paper."""
    found = {}
    for path in entries("benchmarks"):
        data = read_toml(path)
        if data.pop("kind", None) != "suite":
            continue
        try:
            found[path.stem] = Suite.from_dict({"name": path.stem, **data})
        except (KeyError, TypeError, ValueError) as error:
            raise EomtDeployError(
                f"{path} is not a suite: {error}.", fix="Compare it with its neighbours."
            ) from error
    return found


def find_suite(name: str) -> Suite:
    """The suite called ``name``.

    Raises:
        UsageError: there is none; the message has them all.
    """
    known = suites()
    if name not in known:
        raise UsageError(f"There is no suite {name!r}.", fix=f"Known: {', '.join(known)}.")
    return known[name]
