"""Definition of a suite: one table of the paper, from a file in ``benchmarks/``."""

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
    """Numbers of the paper for a row: millions of parameters, GMACs per image, images per second,
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
        name: name for ``--rows``.
        label: name in tables.
        step: step of the ladder, 0 to 5; None for a row that is only quoted from the paper.
        backbone: see :data:`eomt_deploy.benchmarking.paper.ladder.BACKBONES`.
        size: (H, W) of the network's input, in pixels.
        queries, classes: numbers of queries and classes.
        inputs: network inputs per image: the windows of a semantic model.
        base: row that its ratio refers to, if it is not the base of the suite.
        paper: numbers of the paper.
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
        source: source of the paper's numbers.
        device: device that they were measured on.
        base: row that ratios refer to.
        precision: default precision on a GPU; on a CPU the default is fp32.
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
            raise ValueError(
                f"rows must have different names, and each base must be a row, got {names}"
            )

    def base_of(self, row: SuiteRow) -> str:
        """Name of the row that the ratio of ``row`` refers to."""
        return row.base or self.base

    def select(
        self,
        names: tuple[str, ...] = (),
        size: tuple[int, int] | None = None,
        backbone: str | None = None,
    ) -> tuple[SuiteRow, ...]:
        """The rows that we can build, or the named rows and their bases.

        Args:
            names: names of rows; none takes all that we can build.
            size, backbone: values that replace those of each row.

        Raises:
            UsageError: a row is unknown, or only quoted from the paper.
        """
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise UsageError(
                    f"Row {name!r} of {self.name} is unknown.",
                    fix=f"Use rows of: {', '.join(known)}.",
                )
            if known[name].step is None:
                raise UsageError(
                    f"Row {name!r} of {self.name} cannot be measured.",
                    why="It only quotes the paper's numbers.",
                    fix="Use rows of: "
                    + ", ".join(row.name for row in self.rows if row.step is not None)
                    + ".",
                )
        wanted = set(names) | {self.base_of(known[name]) for name in names}
        rows = [r for r in self.rows if r.step is not None and (not names or r.name in wanted)]
        return tuple(
            dataclasses.replace(row, size=size or row.size, backbone=backbone or row.backbone)
            for row in rows
        )

    def to_dict(self) -> dict[str, Any]:
        """The suite as JSON, which :meth:`from_dict` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Suite:
        """A suite from the tables of its TOML file, or from :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: a key or value is not valid.
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
    """The suites in ``benchmarks/``, by name."""
    found = {}
    for path in entries("benchmarks"):
        data = read_toml(path)
        if data.pop("kind", None) != "suite":
            continue
        try:
            found[path.stem] = Suite.from_dict({"name": path.stem, **data})
        except (KeyError, TypeError, ValueError) as error:
            raise EomtDeployError(
                f"{path} is not a suite: {error}.",
                fix="Compare it with the other suites in the same folder.",
            ) from error
    return found


def find_suite(name: str) -> Suite:
    """The suite called ``name``.

    Raises:
        UsageError: it is unknown; the message lists all suites.
    """
    known = suites()
    if name not in known:
        raise UsageError(f"Suite {name!r} is unknown.", fix=f"Use one of: {', '.join(known)}.")
    return known[name]
