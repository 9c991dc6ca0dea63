"""`python -m tests.hostile`: long runs of the fuzzers, in parallel processes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    add = parser.add_argument
    add("targets", nargs="*", help="Targets to test (default: all).")
    add(
        "--count",
        type=int,
        default=10_000,
        help="Number of inputs of all targets together (default: 10000).",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="Seed: the same seed gives the same inputs (default: 0).",
    )
    add(
        "--first",
        type=int,
        default=0,
        help="Number of the first input of each target, e.g. to repeat one input with --count 1 "
        "(default: 0).",
    )
    add(
        "--skip",
        type=int,
        default=0,
        help="Leave out inputs below this number, to continue a stopped run (default: 0).",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="Number of processes (default: one per core).",
    )
    add("--keep", type=Path, help="Folder for the inputs that failed, and report.json.")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()  # fmt: skip


def main() -> int:
    sys.path[:0] = [str(TESTS)]
    options = arguments()
    if options.worker:
        from .worker import main as work

        work(options.worker)
        return 0
    from .campaign import Campaign, split
    from .targets import TARGETS

    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        print(f"Unknown targets: {', '.join(sorted(unknown))}. Known: {', '.join(TARGETS)}.")
        return 2
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    total = sum(target.share for target in chosen)
    jobs = [
        job
        for target in chosen
        for job in split(
            target.name, options.seed, options.first, -(-options.count * target.share // total)
        )
    ]
    jobs = [job for job in jobs if job.first >= options.skip]
    if not jobs:
        print("Nothing is left to run.")
        return 0
    # All targets advance together, so that a stopped run has tested each of them.
    jobs.sort(key=lambda job: job.first)
    started, done = time.monotonic(), [0]

    def progress(_target: str) -> None:
        done[0] += 1
        seconds = time.monotonic() - started
        print(
            f"\r{done[0]}/{len(jobs)} chunks, {seconds:.0f} s ", end="", file=sys.stderr, flush=True
        )

    campaign = Campaign(jobs, min(options.workers, len(jobs)), progress)
    try:
        campaign.join()
    except KeyboardInterrupt:
        campaign.stop()
        left = min((job.first for job in campaign.pending), default=0)
        print(f"\nStopped. To continue, repeat the command with --skip {left}.")
    print(file=sys.stderr)
    results = list(campaign.results.values())
    report(results, options.keep)
    seconds = time.monotonic() - started
    failed = sum(sum(result.causes.values()) for result in results)
    print(f"\n{sum(r.inputs for r in results):,} inputs, {failed:,} failures, {seconds:.0f} s, "
          f"seed {options.seed}")  # fmt: skip
    return 1 if failed else 0


def report(results: list, keep: Path | None) -> None:
    """Print the table, and each cause of a failure with an input that reproduces it."""
    head = ("target", "inputs", "accepted", "refused", "failures", "slowest", "peak")
    print(("{:16}" + "{:>10}" * 6).format(*head))
    for r in results:
        counts = (r.inputs, r.accepted, sum(r.refused.values()), sum(r.causes.values()))
        numbers = "".join(f"{count:10,}" for count in counts)
        print(f"{r.target:16}{numbers}{r.slowest[0]:8.2f} s{r.peak[0] / 1e6:7.0f} MB")
    print("\nRefused by:")
    for r in results:
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(r.refused.items()))
        print(f"  {r.target:16}{kinds or 'nothing'}")
    for r in results:
        for cause, count in sorted(r.causes.items(), key=lambda item: -item[1]):
            shown = next((f for f in r.failures if f["cause"] == cause), None)
            print(f"\n{r.target}: {count} x {cause}")
            if shown:
                print(f"  python -m tests.hostile {shown['case']}")
                print(f"  {'; '.join(shown['steps'])[:300]}")
                lines = shown["details"].strip().splitlines()
                ours = [line for line in lines[:-4] if "eomt_deploy" in line]
                print("    " + "\n    ".join([*ours[-6:], *lines[-4:]])[:1200])
    if keep:
        save(results, keep)


def save(results: list, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    (keep / "report.json").write_text(json.dumps([vars(r) for r in results], indent=1))
    for r in results:
        for number, failure in enumerate(r.failures):
            for name, content in failure["files"].items():
                path = keep / f"{r.target}-{number}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes.fromhex(content))


if __name__ == "__main__":
    sys.exit(main())
