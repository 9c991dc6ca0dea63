"""Run of a suite: open the rows that fit into memory, measure them interleaved, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eomt_deploy.benchmarking.machine import roofline
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.machine.watch import Watch, gpu_load
from eomt_deploy.benchmarking.measure.clock import Rounds, measure
from eomt_deploy.benchmarking.measure.scenarios import (
    LOADS,
    QUEUE,
    Served,
    no_clock,
    poisson_arrivals,
    serve,
)
from eomt_deploy.benchmarking.measure.statistics import (
    clock_problem,
    percentile,
    share_of,
    variation,
)
from eomt_deploy.benchmarking.measure.verdict import UNSTABLE_CV, Evidence, judge
from eomt_deploy.benchmarking.paper import grouping
from eomt_deploy.benchmarking.paper.cases import Opened, open_case
from eomt_deploy.benchmarking.paper.report import Measurement, Size, Skipped, SuiteReport
from eomt_deploy.benchmarking.paper.runtimes import (
    find_runtime,
    why_unavailable,
)
from eomt_deploy.benchmarking.paper.suite_config import CPU_ROUNDS, GPU_ROUNDS, SuiteConfig
from eomt_deploy.benchmarking.paper.suite_file import SuiteRow
from eomt_deploy.errors import DeviceError, MissingDependencyError, UsageError

OPENING_SHARE = 0.6
"""Share of the time budget for opening: rows that are not open by then are skipped."""

Log = Callable[[str], None]


def run_suite(
    config: SuiteConfig,
    *,
    log: Log = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
    save: Callable[[SuiteReport], None] = lambda _: None,
) -> SuiteReport:
    """Measure a suite on this machine.

    Args:
        config: what to measure.
        log: called with a description of each step.
        progress: called with the number of finished rounds of a group.
        save: called with the report after each group, so that an interrupted run loses little.

    Raises:
        MissingDependencyError: PyTorch is missing.
        DeviceError: a GPU is requested, and PyTorch finds none.
        UsageError: an unknown row or device.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    busy = config.busy  # before our own load
    if busy is None and device == "cuda":
        busy = gpu_load()
    precision = config.precision or (config.suite.precision if device == "cuda" else "fp32")
    rounds = config.rounds or (GPU_ROUNDS if device == "cuda" else CPU_ROUNDS)
    rows = config.suite.select(config.rows, config.size, config.backbone)
    changed = [name for name in ("size", "backbone") if getattr(config, name) is not None]
    report = SuiteReport(config.suite, rows, environment(config.threads), {
        "device": device, "precision": precision, "runtimes": list(config.runtimes),
        "scopes": list(config.scopes), "scenario": config.scenario,
        "batches": list(config.batches), "rounds": asdict(rounds),
        "unstable_cv": UNSTABLE_CV, "changed": " and ".join(changed),
        "sampling": config.sampling,
    })  # fmt: skip
    count_rows(report, log)
    runtimes = []
    for name in config.runtimes:
        reason = why_unavailable(find_runtime(name), device, precision)
        if reason is None:
            runtimes.append(name)
        else:
            report.skipped.append(Skipped("all rows", name, reason))
    if config.probe:
        log("measuring the device's peak")
        report.peaks, missing = roofline.probe(device, (precision,))
        report.notes += [f"no peak of {name}: {reason}" for name, reason in missing.items()]
    runner = _Runner(config, report, device, precision, rounds, busy, started, log, progress)
    for index, group in enumerate(runner.groups(runtimes)):
        with tempfile.TemporaryDirectory(prefix="eomt-deploy-") as folder:
            runner.run(index, group, runtimes, Path(folder))
        save(report)
    return report


def opening_order(config: SuiteConfig, rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    """Rows in order of importance, in case a time budget ends.

    Rows that the user named come first, in that order. Without names, the bases come first, then
    the other rows from the last one backwards, because the last row is the result of every table.
    """
    named = {name: index for index, name in enumerate(config.rows)}
    if named:
        return sorted(rows, key=lambda row: named.get(row.name, len(named)))
    bases = [row for row in rows if row.name == config.suite.base_of(row)]
    return [*bases, *(row for row in reversed(rows) if row not in bases)]


def choose_device(wanted: str | None) -> str:
    """The device to measure on, ``cuda`` or ``cpu``; None takes the GPU if PyTorch has one.

    Raises:
        MissingDependencyError: PyTorch is missing.
        DeviceError: ``cuda`` is requested, and PyTorch finds no GPU.
        UsageError: an unknown device.
    """
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "Suites need PyTorch, which is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        )
    if wanted not in (None, "cpu", "cuda"):
        raise UsageError(f"Device {wanted!r} is unknown.", fix="Use cpu or cuda.")
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"PyTorch {torch.__version__} finds no GPU.",
            fix="Run `eomt-deploy doctor` to see what is missing, or use --device cpu.",
        )
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def count_rows(report: SuiteReport, log: Log) -> None:
    """Count parameters and multiply-adds of every row, without creating its weights."""
    from eomt_deploy.benchmarking.paper.counting import count_step

    for row in report.rows:
        log(f"counting {row.label}")
        assert row.step is not None  # Suite.select leaves quoted rows out
        found = count_step(
            row.step, row.backbone, size=row.size, queries=row.queries, classes=row.classes
        )
        report.sizes[row.name] = Size(found.params, found.macs * row.inputs)


class _Runner:
    """State of one run of a suite."""

    def __init__(
        self,
        config: SuiteConfig,
        report: SuiteReport,
        device: str,
        precision: str,
        rounds: Rounds,
        busy: float | None,
        started: float,
        log: Log,
        progress: Callable[[int], None],
    ) -> None:
        self._config, self._report = config, report
        self._device, self._precision, self._rounds = device, precision, rounds
        self._busy = busy
        self._started, self._log, self._progress = started, log, progress

    def groups(self, runtimes: Sequence[str]) -> list[tuple[SuiteRow, ...]]:
        """Groups of rows that fit into memory together, with the bases of their rows."""
        report = self._report
        needs = {
            row.name: grouping.need(
                row, report.sizes[row.name].params, self._precision, runtimes,
                max(self._config.batches),
            )
            for row in report.rows
        }  # fmt: skip
        _free_memory(self._device)  # the probe leaves cached memory
        free = grouping.free_bytes(self._device)
        bases = {row.name: report.suite.base_of(row) for row in report.rows}
        groups, too_large = grouping.pack([r.name for r in report.rows], needs, bases, free)
        for name in too_large:
            needed, left = needs[name].total / 2**30, free / 2**30
            reason = f"needs about {needed:.1f} GiB, but {left:.1f} GiB are free"
            report.skipped.append(Skipped(name, "all", reason))
        if len(groups) > 1:
            report.notes.append(
                f"not all rows fit into {free / 2**30:.1f} GiB together: they were measured in "
                f"{len(groups)} groups, interleaved within each group"
            )
        return [tuple(report.row(name) for name in group) for group in groups]

    def run(
        self, index: int, rows: tuple[SuiteRow, ...], runtimes: Sequence[str], folder: Path
    ) -> None:
        """Open the cases of a group, measure them interleaved, and close them."""
        opened: list[Opened] = []
        try:
            for row in opening_order(self._config, rows):
                opened += self._open_row(row, runtimes, folder)
            place = {row.name: index for index, row in enumerate(rows)}
            opened.sort(key=lambda one: place[one.row.name])
            if opened:
                self._measure(index, opened)
                if self._config.scenario == "server":
                    self._serve(opened)
        except Exception as error:  # e.g. out of memory; other groups can be measured
            for one in opened:
                self._skip(
                    one.row, one.runtime, f"failed during the measurement: {_first_line(error)}"
                )
        finally:
            for one in opened:
                one.close()
            opened.clear()
            _free_memory(self._device)

    def _open_row(self, row: SuiteRow, runtimes: Sequence[str], folder: Path) -> list[Opened]:
        opened: list[Opened] = []
        shared: dict[str, Any] = {}
        for runtime in runtimes:
            for batch in self._config.batches:
                if self._late():
                    self._skip(
                        row, runtime, "the time budget was used up before this row was opened"
                    )
                    continue
                self._log(f"opening {row.label} in {runtime}")
                try:
                    one = open_case(
                        row, runtime, self._device, self._precision, batch,
                        folder, shared, self._config.threads, self._config.image,
                        self._config.sampling,
                    )  # fmt: skip
                except Exception as error:  # the other rows can still be measured
                    self._skip(row, runtime, _first_line(error))
                    _free_memory(self._device)
                    continue
                opened.append(one)
        return opened

    def _late(self) -> bool:
        budget = self._config.budget
        return budget is not None and time.perf_counter() - self._started > OPENING_SHARE * budget

    def _skip(self, row: SuiteRow, runtime: str, reason: str) -> None:
        skipped = Skipped(row.name, runtime, reason)
        if skipped not in self._report.skipped:
            self._report.skipped.append(skipped)

    def _measure(self, index: int, opened: Sequence[Opened]) -> None:
        scopes = self._config.scopes
        jobs = {
            f"{number} {scope}": one.job(scope)
            for number, one in enumerate(opened)
            for scope in scopes
        }
        rounds = self._rounds
        if self._config.budget is not None:
            left = self._config.budget - (time.perf_counter() - self._started)
            rounds = replace(rounds, seconds=max(1.0, min(rounds.seconds or left, 0.8 * left)))
        self._log(f"measuring {len(jobs)} jobs, interleaved")
        with Watch(self._device, self._busy) as watch:
            measured = measure(jobs, rounds, progress=self._progress, watch=watch)
            others, state = watch.others, watch.gpu
            if limits := watch.limits():
                self._report.environment["gpu_limits"] = limits
        for number, one in enumerate(opened):
            network = measured.samples.get(f"{number} network")
            for scope in scopes:
                key = f"{number} {scope}"
                samples = measured.samples[key]
                gpu_network = self._device == "cuda" and scope == "network"
                host = measured.host[key] if gpu_network else []
                resident = None
                if scope == "network+copies" and self._device == "cuda" and network:
                    resident = share_of(network, samples)
                evidence = Evidence(
                    cv=variation(samples),
                    rounds=len(samples),
                    steady=measured.steady[key],
                    others=others,
                    gpu=state,
                    host_share=share_of(host, samples) if host else None,
                    copy_share=None if resident is None else 1 - resident,
                    clock=clock_problem(samples),
                )
                self._report.measurements.append(
                    Measurement(
                        row=one.row.name,
                        runtime=one.runtime,
                        device=one.running.device,
                        precision=self._precision,
                        scope=scope,
                        batch=one.batch,
                        group=index,
                        samples=tuple(samples),
                        host=tuple(host),
                        verdict=judge(evidence),
                        prepare_seconds=one.seconds,
                        remark=one.running.remark,
                        state=state.to_dict() if state else {},
                    )
                )

    def _serve(self, opened: Sequence[Opened]) -> None:
        """Run the server scenario, one row after the other: a server has the machine to itself."""
        config = self._config
        scope = "end-to-end" if "end-to-end" in config.scopes else "network+copies"
        for one in opened:
            job = one.job(scope)
            times = measure({"one": job}, Rounds(10, 2)).samples["one"]
            if failed := no_clock(one.row.name, one.runtime, times):
                self._report.served += failed
                continue
            capacity = 1000 / percentile(times, 50)
            rates = [share * capacity for share in LOADS] if config.rate is None else [config.rate]
            work = job.work
            for rate in rates:
                self._log(f"serving {rate:.2f} requests per second with {one.row.label}")
                arrivals = poisson_arrivals(rate, config.serve_seconds)
                latencies, lost, seconds = serve(work, arrivals)
                self._report.served.append(
                    Served(one.row.name, one.runtime, rate, tuple(latencies), lost, seconds, QUEUE)
                )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _free_memory(device: str) -> None:
    import gc

    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
