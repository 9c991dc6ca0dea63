"""Try every combination of family, precision and backend, and compare with `docs/support.json`.

    python docs/support.py                       # exit code 1 if something is worse
    python docs/support.py --write               # writes support.json and support.md
    python docs/support.py --write coreml        # tries only these backends, and keeps the others
    python docs/support.py --page                # writes support.md for support.json, tries nothing

Each backend has its own date and machine, so that another machine can try the backends that only
run there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.support.families import FAMILIES
from eomt_deploy.support.matrix import Finding, cells, regressions
from eomt_deploy.support.trial import try_cells

HERE = Path(__file__).parent
DATA, PAGE = HERE / "support.json", HERE / "support.md"
SHOWN = {
    "verified": "✓ {}", "builds": "builds", "inexact": "✗ inexact", "failed": "✗ failed",
    "not here": "not tried", "not possible": "–",
}  # fmt: skip

INTRODUCTION = """\
# What works

`python docs/support.py --write` wrote this page. For each family of networks and each precision, \
it exports a small network with random weights, and builds and runs it with each backend. \
`eomt-deploy doctor --matrix` shows what your machine can verify, and `eomt-deploy doctor --matrix \
--run` verifies it; see [Verification](verification.md#what-works-on-this-machine). A test tries a \
part of the page again, and fails if a combination no longer works or its error has grown.

| cell | meaning |
|---|---|
| ✓ 0.0001% | The file was built and run, and agrees with its graph in FP32. The number is the \
largest error of a logit, relative to the largest logit. If the CPU lacks a precision, the cell \
names what was used instead. |
| builds | The file was built, but the machine cannot run it. |
| ✗ inexact | The result differs from the graph for a known reason, e.g. one of the CPU. |
| ✗ failed | The result differs from the graph, or the build failed. |
| not tried | The backend was not installed. |
| – | eomt-deploy does not have this combination. |

The reasons are below each table.

There is one column for all three **tasks**, because the graph is the same for semantic, instance \
and panoptic models. Only the scales and zero points of FP8 and INT8 models differ, and the biases \
that are corrected for them: each task resizes the calibration images in its own way. \
`tests/support/test_networks.py` checks this. The cells try the tasks in turn; \
[`support.json`](support.json) names the task of each cell.

The networks are small, and random weights are a hard test for INT8. So these errors are not those \
of a trained model: [Precision](precision.md) has measured ones.
"""


def page(data: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    yield INTRODUCTION
    for name, run in data.items():
        backend = BACKENDS[name]
        mine = {(f.cell.family, f.cell.precision): f for f in findings(run)}
        yield f"## {backend.title}\n"
        machine = ", ".join([run["cpu"], *run["gpus"]])
        version = f"{backend.title} {run['version']}, " if run["version"] else ""
        yield f"{version}{run['date'][:10]}, {machine}, {run['system']}.\n"
        yield f"| family | {' | '.join(p.upper() for p in PRECISIONS)} |"
        yield "|---" * (1 + len(PRECISIONS)) + "|"
        for family in FAMILIES:
            row = [mine[family, precision] for precision in PRECISIONS]
            yield f"| {family} | {' | '.join(shown(finding) for finding in row)} |"
        yield ""
        yield from reasons(list(mine.values()))


def shown(finding: Finding) -> str:
    """What a cell of the page shows."""
    return SHOWN[finding.status].format(finding.text)


def reasons(found: list[Finding]) -> Iterator[str]:
    """One line for each reason, with the cells that it is about."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        if finding.status != "verified":
            groups.setdefault((finding.status, finding.reason), []).append(finding)
    for (status, reason), members in groups.items():
        precisions = dict.fromkeys(member.cell.precision.upper() for member in members)
        families = dict.fromkeys(member.cell.family for member in members)
        where = ", ".join(precisions) if len(precisions) < len(PRECISIONS) else "all precisions"
        if len(families) < len(FAMILIES):
            where += f" ({', '.join(families)})"
        yield f"- {where}: {status}: {reason}."
    if groups:
        yield ""


def findings(run: dict[str, Any]) -> list[Finding]:
    """The findings of one backend in the stored data."""
    return [Finding.from_dict(finding) for finding in run["findings"]]


def read() -> dict[str, Any]:
    """The stored data: for each backend, the date, the machine and the findings."""
    return dict(json.loads(DATA.read_text(encoding="utf-8"))) if DATA.exists() else {}


def dumped(data: dict[str, Any]) -> str:
    """The data as JSON, with one line for each finding."""
    rows = re.compile(r"\{[^{}\[\]]*\}")
    indented = json.dumps(data, indent=1, ensure_ascii=False)
    return rows.sub(lambda row: " ".join(row[0].split()), indented) + "\n"


def text(data: dict[str, Any]) -> str:
    """The page for the stored data."""
    return "\n".join(page(data)).rstrip() + "\n"


def main() -> int:
    """Try the cells, and write the page or compare with it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write support.json and support.md")
    parser.add_argument("--page", action="store_true", help="only write support.md, from the data")
    parser.add_argument("backend", nargs="*", help="only these backends, e.g. openvino")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(text(read()), encoding="utf-8")
        return 0
    wanted = cells(options.backend)
    found = []
    for finding in try_cells(wanted):
        found.append(finding)
        words = (*finding.to_dict().values(),)[:5]
        print(f"[{len(found)}/{len(wanted)}]", *words, finding.text, flush=True)
    here, data = environment(), read()
    machine = {name: here[name] for name in ("date", "cpu", "cpu_flags", "gpus", "system")}
    worse = []
    for name in dict.fromkeys(cell.backend for cell in wanted):
        mine = [finding for finding in found if finding.cell.backend == name]
        if name in data:
            same = data[name]["cpu_flags"] == here["cpu_flags"]
            worse += regressions(findings(data[name]), mine, same_cpu=same)
        data[name] = machine | {
            "version": BACKENDS[name].version, "findings": [f.to_dict() for f in mine],
        }  # fmt: skip
    print("\n".join(worse) or "Nothing is worse than before.")
    if options.write:
        data = {name: data[name] for name in BACKENDS if name in data}
        DATA.write_text(dumped(data), encoding="utf-8")
        PAGE.write_text(text(data), encoding="utf-8")
    return 1 if worse and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
