"""The `eomt-deploy` command: its verbs, and how errors reach the user."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from eomt_deploy import __version__
from eomt_deploy.cli import bench, build, compare, doctor, eval, export, inspect, list_, predict
from eomt_deploy.cli.cache import app as cache_app
from eomt_deploy.cli.console import say, stderr
from eomt_deploy.errors import EomtDeployError

app = typer.Typer(
    name="eomt-deploy",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run EoMT (Encoder-only Mask Transformer) in production: export, predict, measure.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"eomt-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("list")(list_.list_checkpoints)
app.command("export")(export.export)
app.command("build")(build.build)
app.command("inspect")(inspect.inspect)
app.command("predict")(predict.predict)
app.command("eval")(eval.evaluate)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(cache_app, name="cache")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors become words on stderr and an exit code."""
    # A SIGTERM unwinds as Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot show are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app(None if arguments is None else list(arguments))
    except EomtDeployError as error:
        say(f"error: {error.what}", stderr, "bold red")
        for label, text in (("why", error.why), ("fix", error.fix)):
            if text:
                say(f"  {label}: {text}", stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # Whatever else the file system refuses: names too long, folders without permission.
        place = f"{error.filename}: " if error.filename else ""
        say(f"error: {place}{error.strerror or error}", stderr, "bold red")
        sys.exit(2)
