"""The `eomt-deploy` command: its commands, and how errors reach the user."""

from __future__ import annotations

import errno
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

from eomt_deploy import __version__
from eomt_deploy.cli import (
    batch,
    bench,
    build,
    compare,
    demo,
    doctor,
    eval,
    export,
    inspect,
    list_,
    predict,
    serve,
    triton,
    verify,
)
from eomt_deploy.cli.cache import app as cache_app
from eomt_deploy.cli.completion import with_completion
from eomt_deploy.cli.console import say, stderr
from eomt_deploy.cli.examples import EXAMPLES, epilog
from eomt_deploy.cli.stopping import Stopped, received_signal
from eomt_deploy.errors import FILE_SYSTEM_ID, EomtDeployError, UsageError

FILE_SYSTEM_FIXES = {
    errno.EACCES: "Change the permissions of this file or folder, or choose another one.",
    errno.EPERM: "Change the permissions of this file or folder, or choose another one.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.ENOSPC: "Free some space, or choose another disk.",
    errno.EDQUOT: "Free some space, or choose another disk.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.EMFILE: "Close other programs, or raise the limit of open files (ulimit -n).",
}
OTHER_FIX = "Check that the file or folder exists, and that its disk works."
PARSE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Click's error for arguments that cannot be parsed; some versions of typer contain their own."""

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


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_.list_checkpoints,
    "export": export.export,
    "build": build.command,
    "inspect": inspect.inspect,
    "verify": verify.verify,
    "predict": predict.command,
    "batch": batch.batch,
    "eval": eval.evaluate,
    "compare": compare.compare,
    "bench": bench.command,
    "serve": serve.serve,
    "triton": triton.command,
    "doctor": doctor.doctor,
    "demo": demo.demo,
}
for _name, _command in COMMANDS.items():
    # A short help is not cut in the list of commands.
    _summary = (_command.__doc__ or "").partition("\n\n")[0]
    app.command(_name, epilog=epilog(_name), short_help=_summary)(with_completion(_name, _command))
app.add_typer(cache_app, name="cache")


def run(arguments: Sequence[str]) -> None:
    """Run one command; errors become messages on stderr and an exit code."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # problems that matter raise our own errors
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot show are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(_parse_and_run(list(arguments)))
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
            say(f"  fix: {FILE_SYSTEM_FIXES.get(error.errno or 0, OTHER_FIX)}", stderr)
            sys.exit(2)
        raise


@cache
def _parser() -> Any:
    """The parser of all commands; programs and tests that run many of them build it once."""
    return typer.main.get_command(app)


def _parse_and_run(arguments: list[str]) -> int:
    """Run one command, and return its exit code.

    Raises:
        UsageError: the arguments cannot be parsed.
    """
    try:
        return _parser().main(arguments, prog_name="eomt-deploy", standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except PARSE_ERROR as error:
        context = error.ctx
        words = context.command_path.split()[1:] if context else arguments[:1]
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help page
            error.show()
            return int(error.exit_code)
        name = " ".join(words)
        known = EXAMPLES.get(name)
        raise UsageError(
            error.format_message(),
            fix=f"`{' '.join(['eomt-deploy', *words])} -h` shows all "
            f"{'options' if known else 'commands'}"
            + (f"; an example: {known[0]}" if known else "."),
        ) from error


def _say_stopped(stop: Stopped) -> None:
    say(f"stopped by {stop.signal_name}", stderr)
