"""`eomt-deploy verify`: does this model file compute the right results on this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.building import BuiltFile
from eomt_deploy.backends.registry import BACKENDS, open_engine
from eomt_deploy.cli.console import say, say_remarks, stderr, stdout, steps, warn, write_json
from eomt_deploy.cli.options import Arithmetic, Backend, Device, Model, Overwrite
from eomt_deploy.errors import EomtDeployError, UsageError
from eomt_deploy.external_data import side_files
from eomt_deploy.files import check_writable
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import engine_limits
from eomt_deploy.units import counted


def verify(
    model: Model,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES", help="Image files, folders or globs (default: images of the package)."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="ONNX model that MODEL was built from (default: the one named in MODEL, in the "
            "same folder)."
        ),
    ] = None,
    backend: Backend = None,
    device: Device = None,
    arithmetic: Arithmetic = None,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="If the results differ, find the first part of the network that does."
        ),
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Store the result in MODEL if it passes.")
    ] = False,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file (- for stdout).")
    ] = None,
) -> None:
    """Check on this machine that a model file computes what its ONNX model computes in FP32.

    Exits with code 4 if it does not.
    """
    import numpy as np

    from eomt_deploy.backends import bisection, certification, verification
    from eomt_deploy.image_search import search_images
    from eomt_deploy.processing import Processor
    from eomt_deploy.sources import built_in_images, readable_images

    found = search_images(images or built_in_images())
    built = _built_file(model)
    source = certification.source_model(model, built, against)
    files = [model, *(built.files if built else [])]
    inputs = [*files, source, *side_files(source), *map(Path, images or [])]
    check_outputs({"--json": json}, inputs=inputs, overwrite=overwrite)
    with open_engine(model, backend=backend, device=device, arithmetic=arithmetic) as engine:
        if save:
            if built is None:
                raise UsageError(
                    f"{model} cannot store a certificate.",
                    fix="Use --json FILE to keep the result.",
                )
            built.check_place(engine.arithmetic)
            check_writable(files[-1])
        if bisect:
            bisection.check_applies(model, engine, source)
        say(f"{model}: {engine.where}, compared with {source.name} in fp32", stderr)
        say_remarks(engine)
        processor = Processor(engine.spec)
        paths, notes = readable_images(found.paths, "the comparison", processor.preprocess)
        for note in (*notes, *([found.note] if found.note else [])):
            warn(note)
        with steps() as progress:
            with certification.open_reference(source) as reference:
                certification.check_same_model(engine, reference, source)
                result = verification.compare(engine, reference, paths, progress, batches=True)
            limits = engine_limits(engine.spec.precision, engine.arithmetic)
            problems = result.problems(limits)
            fault, why = None, ""
            if problems and bisect:
                batch, _ = processor.preprocess(paths[0])
                size = engine.spec.batch or 1  # a fixed batch is filled with copies
                batch = np.resize(batch, (size, *batch.shape[1:]))
                try:
                    fault = bisection.find_fault(
                        model, source, engine, batch, limits.max_relative_error, progress
                    )
                    why = str(fault)
                except EomtDeployError as error:  # the result of the comparison comes first
                    why = f"The part was not found: {error.what}"
        certificate = None if problems else certification.certificate(engine, result, limits)
        if json:
            report = {
                "model": str(model),
                "against": str(source),
                "where": engine.where,
                "passed": not problems,
                "problems": problems,
                "comparison": result.to_dict(),
                "limits": {
                    "max_relative_error": limits.max_relative_error,
                    "min_agreement": limits.min_agreement,
                },
                "bisection": None if fault is None else fault.to_dict(),
            }
            write_json(json, report)
        if certificate is None:
            raise certification.failure(source, engine, problems, nothing_written=False, why=why)
    console = stderr if str(json) == "-" else stdout
    say(f"passed on {counted(result.images, 'image')}: {certificate}", console)
    say(f"  {certificate.place}", console)
    if save and built is not None:
        built.save(certificate)
        say(f"  stored in {model}", console)


def _built_file(model: Path) -> BuiltFile | None:
    """The origin and certificate of a built file; None for other files."""
    suffix = model.suffix.lower()
    for backend in BACKENDS.values():
        if backend.build and backend.build.file and backend.build.suffix == suffix:
            built: BuiltFile = load(backend.build.file)(model)
            return built
    return None
