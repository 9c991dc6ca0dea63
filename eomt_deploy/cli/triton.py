"""`eomt-deploy triton`: write models into a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eomt_deploy.cli.console import say, steps
from eomt_deploy.cli.options import Backend, Device, MaxPixels, Overwrite, Threads


def command(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Model files: .onnx, .engine, .xml or .pt2."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Model repository; other models in it stay."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model in Triton (default: the file name).")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="python: one Python model runs everything; bls: a Python model calls the network, "
            "which a backend of Triton runs; ensemble: Triton runs preprocessing, network and "
            "postprocessing as three models."
        ),
    ] = "python",
    version: Annotated[int, typer.Option(help="Number of the version folder.")] = 1,
    instances: Annotated[
        int | None,
        typer.Option(
            help="Number of processes of each Python model; on GPUs, of each GPU (default: 1 for "
            "python, 2 for bls and ensemble)."
        ),
    ] = None,
    device: Device = None,
    backend: Backend = None,
    threads: Threads = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of images (python) or network inputs (bls, ensemble) in a batch "
            "(default: 8, or less if the model takes less)."
        ),
    ] = None,
    max_queue_delay_us: Annotated[
        int,
        typer.Option(help="Maximum time a request waits for others to share its batch, in µs."),
    ] = 0,
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
) -> None:
    """Write models into a model repository of NVIDIA's Triton Inference Server.

    A client sends encoded images (JPEG, PNG, …) and receives the result as JSON with exact RLE
    masks.
    """
    from eomt_deploy.triton.options import TritonConfig, check_form_name
    from eomt_deploy.triton.repository import write_repository

    config = TritonConfig(
        tuple(models),
        output,
        name=name,
        form=check_form_name(form),
        version=version,
        instances=instances,
        device=device,
        backend=backend,
        threads=threads,
        max_batch=max_batch,
        max_queue_delay_us=max_queue_delay_us,
        max_pixels=max_pixels,
        overwrite=overwrite,
    )
    with steps() as progress:
        lines = write_repository(config, progress)
    for line in lines:
        say(line)
    say(f"start the server: tritonserver --model-repository {output}")
