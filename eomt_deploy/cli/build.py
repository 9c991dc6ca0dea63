"""`eomt-deploy build`: an exported model to a TensorRT or TensorRT-RTX engine, or for OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from eomt_deploy import catalog
from eomt_deploy.backends.tensorrt.config import XML, BuildConfig, OpenVinoConfig, parse_batch
from eomt_deploy.cli.console import say, stderr, stdout, warn, write_json
from eomt_deploy.cli.options import Overwrite
from eomt_deploy.errors import UsageError
from eomt_deploy.outputs import check_outputs
from eomt_deploy.units import parse_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from eomt_deploy.backends.tensorrt.build import BuildReport

SHOWN_LAYERS = 8
OPTION_NAMES = {
    "compute_capabilities": "compute-capability",
    "hardware_compatibility": "hardware-compatible",
}


def build(
    model: Annotated[Path, typer.Argument(help="The .onnx file that `export` wrote.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The .engine file to write, or .xml for OpenVINO."),
    ],
    target: Annotated[
        str | None, typer.Option(help="tensorrt (this GPU; default) or tensorrt-rtx (no GPU).")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Settings of engines/NAME.toml; options override them.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="GPU to build for, as 8.9; repeat it. None: 8.0 and later. RTX only."),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Least:optimal:largest of a free batch; 1:1:8 by default.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Most scratch memory, as 4GiB.")] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (quick build) to 5 (longest search). TensorRT only.")
    ] = None,
    tf32: Annotated[
        bool | None, typer.Option(help="Let FP32 products round inputs to 10 bits; off.")
    ] = None,
    strip_weights: Annotated[
        bool | None, typer.Option(help="Leave the weights out; refitted from the ONNX file.")
    ] = None,
    version_compatible: Annotated[
        bool | None, typer.Option(help="Run with later versions, too. TensorRT only.")
    ] = None,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(help="none, ampere-plus or same-compute-capability. TensorRT only."),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Kept measurements; in the user's cache by default.")
    ] = None,
    expect_precision: Annotated[
        str | None, typer.Option(help="Fail unless the engine computes in this.")
    ] = None,
    arithmetic: Annotated[
        str | None,
        typer.Option(
            help="auto, f32, bf16 or f16: what is not quantised; auto takes BF16 if it is faster "
            "here and keeps 99.5% of the labels. OpenVINO only."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to judge that on. OpenVINO only.")
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report here (- for stdout).")
    ] = None,
) -> None:
    """Build an engine from an exported model, and describe it in a .json file beside it."""
    given: dict[str, Any] = {
        "target": target,
        "compute_capabilities": tuple(compute_capability) if compute_capability else None,
        "batch": parse_batch(batch) if batch else None,
        "workspace": parse_bytes(workspace) if workspace else None,
        "optimization_level": optimization_level,
        "tf32": tf32,
        "strip_weights": strip_weights,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatible and hardware_compatible.replace("-", "_"),
        "timing_cache": timing_cache,
        "expect_precision": expect_precision,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if output.suffix.lower() == XML:
        _refuse({"profile": profile, **given}, "the .xml of OpenVINO")
        openvino = OpenVinoConfig(model, output, arithmetic or "auto", images, overwrite)
        _build_openvino(openvino, json)
        return
    _refuse({"arithmetic": arithmetic, "images": images}, "an .engine")
    config = replace(_base(profile, model, output), **given)
    config = replace(config, overwrite=overwrite)
    check_outputs(config.outputs | {"--json": json}, inputs=config.inputs, overwrite=overwrite)
    report = run_build(config, stderr if str(json) == "-" else stdout)
    if json:
        write_json(json, to_dict(report))


def _base(profile: str | None, model: Path, output: Path) -> BuildConfig:
    """The settings of a profile, or the defaults."""
    if profile is None:
        return BuildConfig(model, output)
    recipe = catalog.find_build_profile(profile)
    if recipe.high:
        raise UsageError(
            f"The profile {profile} keeps {', '.join(recipe.high)} in FP32, which the export "
            "decides, not the build.",
            fix=f"Use it there: eomt-deploy export CHECKPOINT --profile {profile} -o {output}",
        )
    return recipe.config(model, output)


def _refuse(options: dict[str, Any], what: str) -> None:
    """Options of the other kind of output.

    Raises:
        UsageError: one is given.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"--{OPTION_NAMES.get(name, name.replace('_', '-'))} is not for {what}."
            )


def _build_openvino(config: OpenVinoConfig, json: Path | None) -> None:
    from eomt_deploy.backends.openvino.build import build_openvino

    check_outputs(
        config.outputs | {"--json": json}, inputs=config.inputs, overwrite=config.overwrite
    )
    report = build_openvino(config, lambda text: say(text, stderr))
    for warning in report.warnings:
        warn(warning)
    console = stderr if str(json) == "-" else stdout
    size = sum(file.stat().st_size for file in report.files)
    say(f"wrote {' + '.join(map(str, report.files))} ({size / 1e6:.1f} MB)", console)
    say(
        f"  OpenVINO {report.version}, {report.precision} model, computes in {report.arithmetic}",
        console,
    )
    if report.trial:
        say(f"  {report.trial}", console)
    if json:
        write_json(json, report.to_dict())


def run_build(config: BuildConfig, console: Console) -> BuildReport:
    """Build with a progress bar, then warnings and summary."""
    from eomt_deploy.backends.tensorrt.build import build

    with _progress() as progress:
        report = build(config, progress)
    for warning in report.warnings:
        warn(warning)
    for line in summary(report):
        say(line, console)
    return report


def to_dict(report: BuildReport) -> dict[str, Any]:
    """The report, ready for JSON."""
    layers = report.layers
    return {
        "files": [str(file) for file in report.files],
        "sidecar": asdict(report.sidecar),
        "seconds": round(report.seconds, 3),
        "layers": {
            "read_from": layers.source,
            "precision": layers.precision,
            "heavy": dict(layers.heavy),
            "higher": list(layers.higher),
            "table": [
                {"type": kind, "precision": precision, "count": count}
                for kind, precision, count in layers.table()
            ],
        },
        "warnings": list(report.warnings),
    }


def summary(report: BuildReport) -> Iterator[str]:
    """The report in a few lines."""
    facts, layers = report.sidecar, report.layers
    yield (
        f"wrote {' + '.join(map(str, report.files))} ({facts.plan_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s)"
    )
    yield (
        f"  {facts.target} {facts.library_version} for {', '.join(facts.compute_capabilities)}, "
        f"{facts.precision}, batch {':'.join(map(str, facts.batch))}"
    )
    counts = ", ".join(f"{count} in {precision}" for precision, count in layers.heavy.items())
    yield f"  matrix products and convolutions of the {layers.source}: {counts}"
    table = [f"{count} {kind} {precision}" for kind, precision, count in layers.table()]
    rest = len(table) - SHOWN_LAYERS
    yield f"  layers: {', '.join(table[:SHOWN_LAYERS])}" + (f", {rest} more" if rest > 0 else "")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar over the whole build; without a terminal each phase once, as a line."""
    if not stderr.is_terminal:
        told: set[str] = set()

        def tell(text: str, _fraction: float) -> None:
            if text not in told:
                told.add(text)
                say(text, stderr)

        yield tell
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, fraction: bar.update(task, description=text, completed=fraction)
