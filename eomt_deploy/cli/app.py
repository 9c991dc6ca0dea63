"""The `eomt-deploy` command: its commands, and how errors reach the user."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from eomt_deploy import __version__
from eomt_deploy.cli import (
    bench,
    build,
    compare,
    doctor,
    eval,
    export,
    inspect,
    list_,
    predict,
    verify,
)
from eomt_deploy.cli.cache import app as cache_app
from eomt_deploy.cli.console import say, stderr
from eomt_deploy.cli.stopping import Stopped, received_signal
from eomt_deploy.errors import FILE_SYSTEM_ID, EomtDeployError

app = typer.Typer(
    name="eomt-deploy",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # also of all commands
    help="Run EoMT (Encoder-only Mask Transformer) in production: export, predict, benchmark.",
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
app.command("build")(build.command)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("predict")(predict.command)
app.command("eval")(eval.evaluate)
app.command("compare")(compare.compare)
app.command("bench")(bench.command)
app.command("doctor")(doctor.doctor)
app.add_typer(cache_app, name="cache")


def run(arguments: Sequence[str]) -> None:
    """Run one command; errors become messages on stderr and an exit code."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # problems that matter raise our own errors
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot show are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app(list(arguments))
    except Stopped as stop:
        _say_stopped(stop)
        raise
    except Exception as error:
        if number := received_signal():  # a library turned our exception into one of its own
            stopped = Stopped(number)
            _say_stopped(stopped)
            raise stopped from error
        if isinstance(error, EomtDeployError):
            say(f"error {error.id}: {error.what}", stderr, "bold red")
            for label, text in (("why", error.why), ("fix", error.fix)):
                if text:
                    say(f"  {label}: {text}", stderr)
            sys.exit(error.exit_code)
        if isinstance(error, OSError):
            # Other file system errors: a name is too long, a folder has no permission.
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or error
            say(f"error {FILE_SYSTEM_ID}: {place}{reason}", stderr, "bold red")
            sys.exit(2)
        raise


def _say_stopped(stop: Stopped) -> None:
    say(f"stopped by {stop.signal_name}", stderr)
