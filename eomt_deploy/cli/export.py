"""`eomt-deploy export`: a checkpoint to a self-describing ONNX file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from eomt_deploy.cli.console import (
    check_report,
    parse_size,
    say,
    stderr,
    stdout,
    steps,
    warn,
    write_json,
)
from eomt_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from eomt_deploy.spec import Task


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="File, Hugging Face folder, hf://owner/name or a catalog name.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    task: Annotated[
        str | None, typer.Option(help="semantic, instance or panoptic; the catalog may know.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help='JSON list of {"name": …, "thing": true}, in logit order.')
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Network input: 640, or 480x640 (height x width).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Catalog entry of this checkpoint.")] = None,
    precision: Annotated[str, typer.Option(help="Arithmetic of the graph.")] = "fp32",
    batch: Annotated[
        int | None, typer.Option(help="Fixed batch size; free when not given.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads, where not width / 64.")
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(help="Blocks that see the queries, if not stored.")
    ] = None,
    native_size: Annotated[
        str | None, typer.Option(help="Trained size, where the checkpoint cannot tell.")
    ] = None,
    allow_unannealed: Annotated[
        bool, typer.Option(help="Export although masked attention was not annealed away.")
    ] = False,
    verify_images: Annotated[
        Path | None, typer.Option(help="Photo or folder to verify on; a few are built in.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report here (- for stdout).")
    ] = None,
) -> None:
    """Export a checkpoint, verified against PyTorch on real photos."""
    from eomt_deploy.exporting import ExportConfig

    config = ExportConfig(
        checkpoint=checkpoint,
        output=output,
        task=cast("Task | None", task),  # ExportConfig checks it, with words
        classes=classes,
        size=parse_size(size),
        native_size=parse_size(native_size),
        name=name,
        heads=heads,
        num_blocks=num_blocks,
        batch=batch,
        precision=precision,
        allow_unannealed=allow_unannealed,
        verify_images=verify_images,
    )
    if json:
        check_report(json, output)
    try:
        from eomt_deploy.exporting.run import export as run_export
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting needs {error.name}, which is not installed.",
            fix="pip install 'eomt-deploy[export,cpu]'",
        ) from error
    with steps() as progress:
        report = run_export(config, progress)
    for warning in report.warnings:
        warn(warning)
    if json:
        write_json(
            json,
            {
                "files": [str(file) for file in report.files],
                "spec": asdict(report.spec),
                "verification": report.verification.to_dict(),
                "warnings": list(report.warnings),
            },
        )
    spec, result = report.spec, report.verification
    megabytes = sum(file.stat().st_size for file in report.files) / 1e6
    lines = (
        f"wrote {' + '.join(str(f) for f in report.files)} ({megabytes:.1f} MB)",
        f"  {spec.task}, {len(spec.classes)} classes, {spec.image_size[0]}x{spec.image_size[1]}, "
        f"{spec.precision}, batch {spec.batch or 'free'}",
        f"  verified against PyTorch on {result.images} photos ({result.inputs} inputs): "
        f"relative error {result.relative_max:.1e}, class agreement "
        f"{result.class_agreement:.2%}, mask agreement {result.mask_agreement:.2%}",
    )
    console = stderr if str(json) == "-" else stdout
    for line in lines:
        say(line, console)
