"""Ctrl-C, SIGTERM and SIGHUP end a command in order: finished work is kept, no leftovers."""

from __future__ import annotations

import signal
import threading
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""


class Stopped(SystemExit):
    """Raised where the command is when a signal arrives; the exit code is the shell's, 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def stop_in_order() -> None:
    """From now on a signal raises :class:`Stopped`. A signal that the parent ignores stays ignored,
    such as SIGHUP under nohup."""
    for number in _handled():
        signal.signal(number, _stop)


def stop_at_once() -> None:
    """From now on a signal ends the process: nothing is left to be kept or removed."""
    for number in _handled():
        signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def _handled() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []  # only the main thread may set handlers
    found = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]
