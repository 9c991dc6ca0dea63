"""`eomt-deploy export`: export a checkpoint to a self-describing model file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.table import Table

from eomt_deploy import catalog
from eomt_deploy.backends.backend import load
from eomt_deploy.backends.building import BuildConfig
from eomt_deploy.backends.profiles import find_build_profile, make_config
from eomt_deploy.backends.registry import BACKENDS, builders
from eomt_deploy.cli.build import build_formats, choose_target, run_build, suffix_fix
from eomt_deploy.cli.console import (
    parse_size,
    say,
    stderr,
    stdout,
    timed_steps,
    warn,
    write_json,
)
from eomt_deploy.cli.options import BaseWeights, Insecure, Overwrite, model_output
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.exporting.config import DEFAULT_SMOOTHING, SUFFIXES
from eomt_deploy.exporting.garbage import rare_collections
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.units import counted, logit_error

if TYPE_CHECKING:
    from rich.console import Console

    from eomt_deploy.exporting import ExportReport
    from eomt_deploy.exporting.config import Attention, Method
    from eomt_deploy.exporting.verdict import Verdict
    from eomt_deploy.spec import Task


class Build(NamedTuple):
    """The build that follows the export, and the profile's settings for the export."""

    target: str
    config: BuildConfig
    precision: str | None
    high: tuple[str, ...]


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Checkpoint: file, Hugging Face folder, hf://owner/name[@revision], URL or "
            "catalog name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=model_output,
            metavar="PATH",
            help="File to write: .onnx or .pt2; .engine, .xml, .pte or .mlpackage also builds it, "
            "and a folder (site/) a site for browsers.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            help="semantic, instance or panoptic (default: from the catalog or the checkpoint)."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help='Classes: JSON list of {"name": …, "thing": true}, COCO file, or a name such as '
            "coco_panoptic or ade20k (default: from the catalog or the checkpoint)."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Network input size in pixels, e.g. 640, or 480x640 for height x width "
            "(default: size of the training images)."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Catalog entry of this checkpoint.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Local copy of the weights of a catalog entry; nothing is downloaded."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16, int8 or fp8 (default: fp32).")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Settings of engines/NAME.toml, for -o m.engine.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Calibration image or folder; required for int8 and fp8."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Maximum accuracy loss of int8 or fp8 in points, e.g. 0.5; blocks stay in FP16 to "
            "meet it."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Labelled data to measure the accuracy loss on; can be repeated (default: label "
            "agreement on held-out calibration images)."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="For int8 and fp8: take at most 8 images, and do not measure the accuracy loss of "
            "each block.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="Calibration method: output, mse, minmax, percentile or entropy (default: output "
            "for int8, minmax for fp8)."
        ),
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="SmoothQuant strength for int8 and fp8, 0 (off) to 1.")
    ] = DEFAULT_SMOOTHING,
    high: Annotated[
        list[str] | None,
        typer.Option(help="Role or module that stays in FP32, e.g. softmax; can be repeated."),
    ] = None,
    islands: Annotated[
        bool, typer.Option(help="Keep layers in FP32 whose values exceed the FP16 range.")
    ] = True,
    attention: Annotated[
        str,
        typer.Option(
            help="written (MatMul and Softmax nodes) or fused (one Attention operator, opset 23)."
        ),
    ] = "written",
    batch: Annotated[
        int | None, typer.Option(help="Fixed batch size (default: dynamic batch; .pt2: 1).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device to compile a .pt2 file for: cpu or cuda (default: cuda, if available)."
        ),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Number of attention heads, if it is not width / 64.")
    ] = None,
    num_blocks: Annotated[
        int | None,
        typer.Option(help="Number of last blocks that process the queries, if it is not stored."),
    ] = None,
    base_weights: BaseWeights = None,
    weights_key: Annotated[
        str | None,
        typer.Option(
            help="Weights to take from the file, e.g. state_dict (default: EMA weights, if any)."
        ),
    ] = None,
    insecure: Insecure = False,
    allow_stuff: Annotated[
        bool,
        typer.Option("--allow-stuff", help="Allow stuff classes in an instance model."),
    ] = False,
    native_size: Annotated[
        str | None,
        typer.Option(help="Size of the training images in pixels, if it cannot be inferred."),
    ] = None,
    allow_unannealed: Annotated[
        bool, typer.Option(help="Export even if masked attention was not annealed to 0.")
    ] = False,
    verify_images: Annotated[
        Path | None,
        typer.Option(help="Image or folder to verify on (default: images of the package)."),
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file (- for stdout).")
    ] = None,
) -> None:
    """Export a checkpoint and verify it against PyTorch on real images."""
    from eomt_deploy.exporting import ExportConfig

    if weights is not None:
        if not weights:
            raise UsageError("--weights is empty.", fix="Pass a file, or leave the option out.")
        if checkpoint not in catalog.checkpoints():
            raise UsageError(
                f"With --weights, CHECKPOINT must be a catalog name, got {checkpoint!r}.",
                fix="Choose a name that `eomt-deploy list` shows, or leave --weights out.",
            )
        if name:
            raise UsageError(
                "--weights and --name conflict: both select a catalog entry.",
                fix=f"Use one: export {name} --weights {weights}",
            )
        checkpoint, name = weights, checkpoint
    common = {"overwrite": overwrite, "check_images": verify_images}
    build = _plan_build(output, profile, common)
    precision = precision or (build.precision if build else None) or "fp32"
    if build:
        _check_build(build.target, precision, attention, output)
    config = ExportConfig(
        checkpoint=checkpoint,
        output=build.config.onnx if build else output,
        task=cast("Task | None", task),  # ExportConfig checks it
        classes=classes,
        size=parse_size(size),
        native_size=parse_size(native_size),
        name=name,
        heads=heads,
        num_blocks=num_blocks,
        base_weights=base_weights,
        weights_key=weights_key,
        insecure=insecure,
        allow_stuff=allow_stuff,
        batch=batch,
        device=device,
        precision=precision,
        calibrate=calibrate,
        budget=budget,
        data=tuple(data or ()),
        quick=quick,
        method=cast("Method | None", method),
        smooth=smooth,
        high=tuple(high or (build.high if build else ())),
        islands=islands,
        attention=cast("Attention", attention),
        allow_unannealed=allow_unannealed,
        verify_images=verify_images,
        overwrite=overwrite,
    )
    built_files = build.config.outputs if build else {}
    targets = {**config.outputs, **built_files, "--json": json}
    check_outputs(targets, inputs=config.inputs, overwrite=overwrite)
    if build:
        builder = BACKENDS[build.target].build
        if builder and builder.check:
            load(builder.check)(build.config)  # before the work
    console = stderr if str(json) == "-" else stdout
    with rare_collections():
        try:
            from eomt_deploy.exporting.run import export as run_export
        except ImportError as error:
            raise MissingDependencyError(
                f"Exporting needs {error.name}, which is not installed.",
                fix="pip install 'eomt-deploy[export,cpu]'",
            ) from error
        with timed_steps() as progress:
            report = run_export(config, progress)
    for warning in report.warnings:
        warn(warning)
    _show(report, console)
    built = run_build(build.target, build.config, console) if build else None
    if json:
        write_json(
            json,
            {
                "files": [str(file) for file in report.files],
                "spec": asdict(report.spec),
                "verification": report.verification.to_dict(),
                "islands": [asdict(island) for island in report.islands],
                "verdict": report.verdict.to_dict() if report.verdict else None,
                "warnings": list(report.warnings),
                "compiled": report.compiled or None,
                "build": built.to_dict() if built else None,
            },
        )


def _plan_build(output: Path, profile: str | None, common: dict[str, Any]) -> Build | None:
    """The build of `-o m.engine`, which follows the export of `m.onnx`; None for other outputs.

    Args:
        common: fields of the build's configuration.

    Raises:
        UsageError: a profile is given but nothing is built, or an ONNX file would be replaced.
    """
    if not builders(output.suffix):
        if output.suffix.lower() not in SUFFIXES:
            formats = {".onnx": "any backend", ".pt2": "AOTInductor"}
            formats |= build_formats()
            raise UsageError(
                f"{output} has the suffix {output.suffix or '(none)'}, which is not a format of a "
                "model file.",
                fix=suffix_fix(output, formats),
            )
        if profile:
            raise UsageError(
                f"--profile selects how a model is built, but {output} is only exported.",
                fix="Use -o with the suffix of a backend, e.g. .engine.",
            )
        return None
    recipe = find_build_profile(profile) if profile else None
    target = choose_target(output, None, recipe.target if recipe else None)
    builder = BACKENDS[target].build
    in_folder = builder is not None and builder.folder
    model = (output.parent if in_folder else output).with_suffix(".onnx")
    if model.exists():
        raise UsageError(
            f"{output} is built from {model}, which already exists and would be replaced.",
            fix=f"Build from it: eomt-deploy build {model} -o {output}; or move it.",
        )
    if recipe is None:
        config = make_config(target, model, output, common)
        return Build(target, config, None, ())
    config = recipe.config(model, output, **common)
    return Build(target, config, recipe.precision, recipe.high)


def _check_build(target: str, precision: str, attention: str, output: Path) -> None:
    """Check that the backend can be built for, before an export that may take minutes.

    Raises:
        UsageError: it has no models in this precision, or no fused attention.
    """
    backend = BACKENDS[target]
    if precision in PRECISIONS and precision not in backend.precisions:
        raise UsageError(
            f"{output} cannot be built: eomt-deploy has no {precision.upper()} for "
            f"{backend.title}.",
            fix=f"Use --precision {' or '.join(backend.precisions)}, or export to .onnx.",
        )
    if attention == "fused" and backend.build and not backend.build.fused_attention:
        raise UsageError(
            f"{output} cannot be built: {backend.title} has no operator for fused attention.",
            fix="Leave out --attention fused.",
        )


def _show(report: ExportReport, console: Console) -> None:
    spec, result = report.spec, report.verification
    megabytes = sum(file.stat().st_size for file in report.files) / 1e6
    lines = (
        f"wrote {' + '.join(str(f) for f in report.files)} ({megabytes:.1f} MB)",
        f"  {spec.task}, {len(spec.classes)} classes, {spec.image_size[0]}x{spec.image_size[1]}, "
        f"{spec.precision}, {f'batch {spec.batch}' if spec.batch else 'dynamic batch'}"
        f"{report.compiled and f', compiled {report.compiled}'}",
        f"  verified against PyTorch on {counted(result.images, 'image')} "
        f"({counted(result.inputs, 'input')}): equal classes {result.class_agreement:.2%}, "
        f"mask signs {result.mask_agreement:.2%}, labels {result.label_agreement:.2%}; "
        f"{logit_error(result.relative_max, PRECISIONS[spec.precision].max_relative_error)}",
    )
    for line in lines:
        say(line, console)
    if report.verdict:
        _show_verdict(report.verdict, spec.precision, console)


def _show_verdict(verdict: Verdict, precision: str, console: Console) -> None:
    """The accuracy loss of each block alone, unless it was not measured, and of the model."""
    table = Table("block", box=None)
    for name in ("logit error", "same labels", "runs in"):
        table.add_column(name, justify="right")
    for block, judged in verdict.sensitivity.items():
        runs = "fp16" if block in verdict.chosen.kept else precision
        table.add_row(str(block), f"{judged.error:.2%}", f"{judged.agreement:.3%}", runs)
    judged = verdict.chosen.judgement
    table.add_row("all", f"{judged.error:.2%}", f"{judged.agreement:.3%}", style="bold")
    if verdict.sensitivity:
        console.print(table)
    kept, count = len(verdict.chosen.kept), len(verdict.sensitivity)
    text = f"  verdict: {judged.drop:.2f} points of {verdict.unit} lost"
    if judged.score is not None:
        text += f" ({judged.reference:.2f} → {judged.score:.2f})"
    text += f" on {counted(judged.images, 'image')}"
    if count:
        text += f", {count - kept} of {count} blocks in {precision}"
    if verdict.budget is not None:
        text += f", budget {verdict.budget:g}"
    say(text, console)
