"""Fidelity of model files: score, and difference from the checkpoint in PyTorch.

The rows are all precisions that can be exported, on all installed backends. New precisions and
backends are included automatically.

    python benchmarks/fidelity.py                          # the embedded model on held-out scenes
    python benchmarks/fidelity.py --name camvid --checkpoint camvid.bin --task semantic \\
        --classes classes.json --data camvid/val           # your own model and labelled data
    python benchmarks/fidelity.py --images images/ …       # only agreement, without labels
    … --calibrate images/ --budget 0.2                     # also int8 and fp8

FP32 runs on every backend. Lower precisions run on the CPU, and as a GPU would compute them
(`--backend emulation`).

Writes benchmarks/results/fidelity-NAME.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomllib
from rich.console import Console

from eomt_deploy import Segmenter
from eomt_deploy.backends import BACKENDS
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.devices import computes_in_bf16
from eomt_deploy.errors import EomtDeployError
from eomt_deploy.evaluation import open_dataset
from eomt_deploy.evaluation.compare import Comparison, compare
from eomt_deploy.evaluation.truth import unlabelled
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.config import PRECISIONS, QUANTIZED
from eomt_deploy.exporting.describe import find_source
from eomt_deploy.exporting.reference import TorchEngine
from eomt_deploy.files import write_atomically
from eomt_deploy.sources import find_images

HERE = Path(__file__).parent
CALIBRATION_SCENES = 64
IN_BF16 = ("fp32", "int8")
"""Precisions whose unquantized part can use BF16 after `eomt-deploy build`."""
SCENES = HERE.parent / "examples" / "tiny_checkpoint" / "scenes.py"


@dataclass(frozen=True)
class Row:
    model: str
    precision: str
    megabytes: float
    comparison: Comparison


def main() -> None:
    defaults = tomllib.loads((HERE / "fidelity.toml").read_text())
    parser = argparse.ArgumentParser(description="Score and fidelity of model files.")
    parser.add_argument("--name", default="scenes", help="name of the result files")
    parser.add_argument("--checkpoint", default=defaults["checkpoint"])
    parser.add_argument("--data", nargs="+", help="labelled data (default: synthetic scenes)")
    parser.add_argument("--images", nargs="+", help="images without labels: only agreement")
    parser.add_argument("--task")
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--calibrate", type=Path, help="calibration images for int8 and fp8")
    parser.add_argument(
        "--budget", type=float, help="maximum loss of an additional int8 row, in points"
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        given = options.images or options.data
        if not given:  # calibrate on other synthetic scenes
            scenes = make_scenes(work / "calibration", CALIBRATION_SCENES, defaults["seed"] + 1)
            options.calibrate = options.calibrate or scenes / "images"
        data = given or [make_scenes(work / "scenes", defaults["count"], defaults["seed"])]
        # Only the last two parts of a path, so that results do not contain paths of this machine.
        named = [str(Path(*Path(d).parts[-2:])) for d in given or []]
        origin = (
            " ".join(named) or f"{defaults['count']} {defaults['data']}, seed {defaults['seed']}"
        )
        rows = list(measure(options, work, data, console))
    write(options, origin, rows)


def make_scenes(folder: Path, count: int, seed: int) -> Path:
    command = [sys.executable, SCENES, folder, "--count", str(count), "--seed", str(seed)]
    subprocess.run(command, check=True)
    return folder


def measure(
    options: argparse.Namespace, work: Path, data: list[Any], console: Console
) -> Iterator[Row]:
    for precision, budget in wanted(options):
        path = work / f"model.{precision}.{budget}.onnx"
        high = precision in ("fp32", "bf16")
        judged = options.data if precision in QUANTIZED and options.data else ()
        config = ExportConfig(
            options.checkpoint,
            path,
            task=options.task,
            classes=options.classes,
            precision=precision,
            calibrate=None if high else options.calibrate,
            budget=budget,
            data=tuple(Path(d) for d in judged) if budget is not None else (),
        )
        console.print(f"exporting {precision}" + (f", budget {budget:g}" if budget else ""))
        report = export(config)
        if budget is not None and report.verdict:
            kept = ", ".join(map(str, report.verdict.chosen.kept)) or "none"
            named = f"{precision}, budget {budget:g}: fp16 blocks {kept}"
        else:
            named = precision
        location = find_source(config).location
        reference = Segmenter(TorchEngine(location, report.spec))
        if options.images:
            samples = unlabelled(find_images(options.images))[: options.limit]
        else:
            samples = open_dataset(data, report.spec).samples[: options.limit]
        for name, backend in BACKENDS.items():
            if not backend.installed or ".onnx" not in backend.suffixes:
                continue
            if (precision, name) == ("fp32", "emulation"):  # FP32 needs no emulation
                continue
            kinds: tuple[str | None, ...] = (None,)
            if name == "openvino" and precision in IN_BF16 and computes_in_bf16():
                kinds = ("fp32", "bf16")
            size = sum(file.stat().st_size for file in report.files) / 1e6
            for arithmetic in kinds:
                with Segmenter(path, backend=name, arithmetic=arithmetic) as segmenter:
                    where = segmenter.engine.where
                    console.print(f"{where}, {named}: {len(samples)} images")
                    found = compare(reference, segmenter, samples, labelled=not options.images)
                yield Row(where, named, size, found)


def wanted(options: argparse.Namespace) -> list[tuple[str, float | None]]:
    """Precisions and budgets of the rows; quantized ones only with calibration images."""
    able = [p for p in options.precisions if p not in QUANTIZED or options.calibrate]
    rows: list[tuple[str, float | None]] = [(precision, None) for precision in able]
    if options.budget is not None and "int8" in able:
        rows.append(("int8", options.budget))
    return rows


def write(options: argparse.Namespace, origin: str, rows: list[Row]) -> None:
    machine = environment()
    first = rows[0].comparison
    header = (
        f"| backend | precision | MB | {first.metric} | difference | 95% interval | same labels "
        "| logit error |\n|---|---|---|---|---|---|---|---|\n"
    )
    reference = first.labelled
    table = header
    if reference:
        table += f"| checkpoint in PyTorch | fp32 | | {reference.a:.2f} | | | | |\n"
    for row in rows:
        found = row.comparison
        score = found.labelled
        numbers = (
            f"{score.b:.2f} | {score.difference:+.3f} | {score.low:+.3f} … {score.high:+.3f}"
            if score and score.low is not None
            else " | | "
        )
        error = "" if found.logit_max is None else f"{found.logit_max:.1e}"
        table += (
            f"| {row.model} | {row.precision} | {row.megabytes:.1f} | {numbers} "
            f"| {found.label_agreement:.4%} | {error} |\n"
        )
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    text = (
        f"# Fidelity: {options.name}\n\n{Path(options.checkpoint).name} on {origin} "
        f"({first.images} images).\n\n{table}\n{machine['cpu']}, {machine['cores']} cores; "
        f"{versions}; {machine['date'][:10]}.\n"
    )
    target = options.output / f"fidelity-{options.name}"
    write_atomically(target.with_suffix(".md"), text.encode())
    content = {
        "schema": 1,
        "environment": machine,
        "checkpoint": Path(options.checkpoint).name,
        "data": origin,
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(target.with_suffix(".json"), json.dumps(content, indent=1).encode() + b"\n")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except EomtDeployError as error:
        sys.exit(f"error: {error}")
