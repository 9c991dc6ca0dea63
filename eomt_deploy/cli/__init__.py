"""The command line: one file per command."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors become messages on stderr and an exit code.

    Args:
        arguments: arguments of the command. None takes those of the process; then Ctrl-C ends the
            process without a traceback, even while modules are imported or while it exits.
    """
    own_process = arguments is None
    if own_process:
        # Registered first, it runs last. Without it, Python examines each object at the end of the
        # process, which is about a seventh of the time of a command.
        atexit.register(gc.freeze)
    if own_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from eomt_deploy.cli.app import run
        from eomt_deploy.cli.stopping import stop_in_order

        if own_process:
            stop_in_order()
        run(sys.argv[1:] if arguments is None else list(arguments))
    finally:
        if own_process:
            from eomt_deploy.cli.stopping import stop_at_once

            stop_at_once()


__all__ = ["main"]
