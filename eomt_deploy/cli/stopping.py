"""Ctrl-C, SIGTERM and SIGHUP end a command cleanly: finished results are kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""


class Stopped(SystemExit):
    """Raised in the running command when signal n arrives; the exit code is 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


_deferred: list[int] | None = None
"""Signals that wait for the end of :func:`uninterrupted`; None outside of it."""
_received: list[int] = []
"""Signals that have arrived."""


def received_signal() -> int | None:
    """The first signal that has arrived, or None."""
    return _received[0] if _received else None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a short step finish, e.g. the files of one result, before a signal stops the command.

    Raises:
        Stopped: at the end, if a signal arrived meanwhile.
    """
    global _deferred
    _deferred = []
    try:
        yield
    finally:
        waiting, _deferred = _deferred, None
    if waiting:
        raise Stopped(waiting[0])


def stop_in_order() -> None:
    """From now on a signal raises :class:`Stopped`.

    A signal that the parent process ignores stays ignored, e.g. SIGHUP under nohup.
    """
    for number in _handled():
        signal.signal(number, _stop)


def stop_at_once() -> None:
    """From now on a signal ends the process; all files are already written or removed."""
    for number in _handled():
        signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if _deferred is None:
        raise Stopped(number)
    _deferred.append(number)


def _handled() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []  # only the main thread may set handlers
    found = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]
