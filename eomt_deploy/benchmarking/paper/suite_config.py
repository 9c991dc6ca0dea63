"""Configuration of a suite run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.benchmarking.measure.clock import Rounds
from eomt_deploy.benchmarking.measure.scenarios import SCENARIOS, Scenario, absurd
from eomt_deploy.benchmarking.paper.runtimes import PRECISIONS, SAMPLINGS, find_runtime
from eomt_deploy.benchmarking.paper.suite_file import Suite
from eomt_deploy.errors import UsageError

if TYPE_CHECKING:
    from eomt_deploy.sources import RgbImage

SCOPES = ("network", "network+copies", "end-to-end")
"""``network``: inputs and outputs stay on the device; ``network+copies``: from host memory to host
memory; ``end-to-end``: from the pixels of an image to its segments."""
GPU_ROUNDS = Rounds(iterations=100, warmup=10, max_warmup=100, seconds=60)
CPU_ROUNDS = Rounds(iterations=20, warmup=1, max_warmup=10, seconds=300)


@dataclass(frozen=True)
class SuiteConfig:
    """What to measure.

    Attributes:
        suite: table of the paper.
        rows: names of rows; none takes all rows that we can build.
        size: (H, W) in pixels, instead of the size of each row.
        backbone: name of a backbone, instead of the backbone of each row.
        runtimes: names from :func:`eomt_deploy.benchmarking.paper.runtimes.runtimes`.
        scopes: names from :data:`SCOPES`.
        scenario: see :data:`eomt_deploy.benchmarking.measure.scenarios.Scenario`.
        batches: batch sizes; more than one only in the offline scenario.
        rate: requests per second of the server scenario; None tries the shares
            :data:`eomt_deploy.benchmarking.measure.scenarios.LOADS` of the measured throughput.
        serve_seconds: duration of each rate.
        device: ``cpu`` or ``cuda``; None takes the GPU if PyTorch has one.
        precision: None takes the suite's precision on a GPU and fp32 on a CPU.
        rounds: None takes :data:`GPU_ROUNDS` or :data:`CPU_ROUNDS`.
        threads: number of CPU threads; None leaves the choice to the runtime.
        sampling: kernel of the baseline's deformable attention: ``grid_sample``, or the fused
            ``triton`` for PyTorch on a GPU.
        image: image for the end-to-end scope: a path, or uint8 RGB [H, W, 3].
        budget: time limit in seconds; rows that do not fit are skipped with a reason.
        probe: whether to measure the device's peak.
        busy: load of the GPU before this program used it, see
            :func:`eomt_deploy.benchmarking.machine.watch.gpu_load`; None measures it now.
    """

    suite: Suite
    rows: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    backbone: str | None = None
    runtimes: tuple[str, ...] = ("torch-eager",)
    scopes: tuple[str, ...] = ("network",)
    scenario: Scenario = "single"
    batches: tuple[int, ...] = (1,)
    rate: float | None = None
    serve_seconds: float = 20.0
    device: str | None = None
    precision: str | None = None
    rounds: Rounds | None = None
    threads: int | None = None
    sampling: str = "grid_sample"
    image: Path | RgbImage | None = None
    budget: float | None = None
    probe: bool = True
    busy: float | None = None

    def __post_init__(self) -> None:
        for runtime in self.runtimes:
            find_runtime(runtime)
        problems = []
        problems += [f"scope {s!r} is unknown" for s in self.scopes if s not in SCOPES]
        if self.scenario not in SCENARIOS:
            problems.append(f"scenario {self.scenario!r} is unknown")
        if self.precision is not None and self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r} is unknown")
        if len(self.batches) > 1 and self.scenario != "offline":
            problems.append("several batch sizes need the offline scenario")
        if self.sampling not in SAMPLINGS:
            problems.append(f"sampling {self.sampling!r} is unknown")
        if any(batch < 1 for batch in self.batches):
            problems.append(f"batch must be at least 1, got {min(self.batches)}")
        if max(self.batches, default=1) > 1 and "end-to-end" in self.scopes:
            problems.append(f"end-to-end needs batch size 1, got {max(self.batches)}")
        if self.rate is not None and (self.scenario != "server" or not 0 < self.rate < math.inf):
            problems.append(
                "rate must be a positive number and needs the server scenario, got "
                f"{self.rate:g} and {self.scenario!r}"
            )
        problems += absurd(self.batches, self.rate, self.serve_seconds)
        if "end-to-end" in self.scopes and self.image is None:
            problems.append("end-to-end needs an image, got none")
        if problems:
            raise UsageError(
                "The configuration is not valid: " + "; ".join(problems) + ".",
                fix=f"Scopes: {', '.join(SCOPES)}. Scenarios: {', '.join(SCENARIOS)}. "
                f"Precisions: {', '.join(PRECISIONS)}.",
            )
