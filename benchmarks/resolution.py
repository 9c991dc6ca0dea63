"""Smallest difference that `bench` detects on this machine, with its own clock and statistics.

    python benchmarks/resolution.py MODEL.onnx [--percent 5] [--runs 10] [--json FILE]

Three jobs run in interleaved rounds: an engine, the same file opened again, and that second engine
with a wait after each call (in percent of its time). `bench` must find no difference between the
first two, and must detect the third.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from eomt_deploy.backends import open_engine
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.benchmarking.measure.clock import Job, Rounds, measure
from eomt_deploy.benchmarking.measure.statistics import LEVEL, percentile, speedup


def main() -> None:
    parser = argparse.ArgumentParser(description="Smallest difference that bench detects.")
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--percent", type=float, default=5.0, help="slowdown of the third job, in percent"
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    # One thread each, because idle threads of one session spin for a while and slow down the other.
    engines = [open_engine(options.model, threads=1) for _ in range(2)]
    with engines[0] as first, engines[1] as second:
        shape = (first.spec.batch or 1, *first.spec.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        usual = measure({"one": Job(lambda: first.run(images))}, Rounds(20, 5)).samples["one"]
        wait = percentile(usual, 50) / 1000 * options.percent / 100

        def slowed() -> None:
            second.run(images)
            end = time.perf_counter() + wait
            while time.perf_counter() < end:
                pass

        jobs = {
            "first": Job(lambda: first.run(images)),
            "same": Job(lambda: second.run(images)),
            "slowed": Job(slowed),
        }
        found = []
        for run in range(options.runs):
            samples = measure(jobs, Rounds(options.rounds, 5), seed=run).samples
            ratios = {name: speedup(samples["first"], samples[name]) for name in ("same", "slowed")}
            found.append({name: ratio.to_dict() for name, ratio in ratios.items()})
            print(
                *(
                    f"{n}: {r.value:.3f} ({r.low:.3f}–{r.high:.3f}) {r.finding};"
                    for n, r in ratios.items()
                )
            )
    for name in ("same", "slowed"):
        print(name, dict(Counter(row[name]["finding"] for row in found)))
    if options.json:
        data = {
            "schema": 1, "environment": environment(), "model": options.model.name,
            "percent": options.percent, "rounds": options.rounds, "level": LEVEL, "runs": found,
        }  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
