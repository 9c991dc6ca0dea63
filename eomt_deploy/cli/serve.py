"""`eomt-deploy serve`: models behind HTTP and gRPC."""

from __future__ import annotations

from typing import Annotated

import typer

from eomt_deploy.cli.console import say, stderr, warn
from eomt_deploy.cli.options import Arithmetic, Backend, Device, Threads
from eomt_deploy.errors import MissingDependencyError, UsageError


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODELS",
            help="Model files. Clients use the file name without suffix; NAME=FILE sets another.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port for gRPC.")] = 8001,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="Serve HTTP only.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="EOMT_DEPLOY_TOKEN",
            show_envvar=False,
            help="Secret that requests must send; better set EOMT_DEPLOY_TOKEN, since other users "
            "of this machine can see arguments.",
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Let everyone who reaches the address use the server."),
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Number of worker processes per model.")
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, max=64, help="Maximum number of images per batch.")
    ] = 8,
    max_delay_ms: Annotated[
        float,
        typer.Option(min=0, max=1000, help="Time that an image waits for others, in milliseconds."),
    ] = 2.0,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Maximum number of waiting images; more get status 503."
        ),
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Maximum time for an answer, in seconds.")
    ] = 30.0,
    max_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="Maximum size of a request, in MiB.")
    ] = 32,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0, max=3600, help="Time for the requests in the queue after SIGTERM, in seconds."
        ),
    ] = 30.0,
    log: Annotated[str, typer.Option(help="Log of requests: text, json or off.")] = "text",
    backend: Backend = None,
    device: Device = None,
    threads: Threads = None,
    arithmetic: Arithmetic = None,
    max_pixels: Annotated[
        int, typer.Option(help="Maximum number of pixels of an image, checked before decoding.")
    ] = 50_000_000,
) -> None:
    """Serve models over HTTP and gRPC.

    Clients of the Open Inference Protocol such as tritonclient work unchanged; POST /segment takes
    an image, and http://127.0.0.1:8000/ is a page to try the model. Only this machine can use the
    server, unless you change --host; then requests need a token. SIGTERM and Ctrl-C finish the
    requests in the queue.
    """
    try:
        from eomt_deploy.serving.config import Limits, ServeConfig, check_access, named_models
        from eomt_deploy.serving.log import LOGS
        from eomt_deploy.serving.pool import PoolOptions
        from eomt_deploy.serving.run import Running
        from eomt_deploy.serving.run import serve as run
        from eomt_deploy.serving.worker import WorkerOptions
    except ImportError as error:
        raise MissingDependencyError(
            f"serve needs a package that is not installed ({error.name}).",
            fix="pip install 'eomt-deploy[serve]'",
        ) from error
    check_access(host, token, no_auth=no_auth)
    if log not in LOGS:
        raise UsageError(
            f"The log format {log!r} is unknown.", fix=f"Use one of {', '.join(LOGS)}."
        )
    config = ServeConfig(
        named_models(models), host, port, None if no_grpc else grpc_port, token, drain_seconds, log,
        PoolOptions(workers, max_batch, max_delay_ms / 1000, max_queue, timeout),
        WorkerOptions(backend, device, threads, arithmetic, max_pixels),
        Limits(max_mib << 20),
    )  # fmt: skip

    def started(running: Running) -> None:
        for name, model in running.models.items():
            say(f"{name}: {model.task}, {model.precision}, {model.where}", stderr)
            for remark in model.remarks:
                warn(f"{name}: {remark}")
        if no_auth:
            warn("The server has no token: everyone who reaches this address can use it.")
        grpc = f", gRPC at {running.grpc_address}" if running.grpc_address else ""
        say(f"serving at {running.address}{grpc}; Ctrl-C stops", stderr)

    run(config, started)
    say("stopped", stderr)
