"""Ctrl-C, SIGTERM and SIGHUP end a command cleanly: finished results are kept."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""
AGAIN_SECONDS = 0.02
"""Time after which a signal whose exception was lost is sent again."""


class Stopped(SystemExit):
    """Raised in the running command when signal n arrives; the exit code is 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
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
    sys.unraisablehook = _keep_stopping


def _keep_stopping(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception was lost.

    Python ignores exceptions in callbacks of weak references, in `__del__`, and in callbacks of
    some C libraries: the command would go on.
    """
    if isinstance(lost.exc_value, Stopped):
        # Not a class of `threading`: this code may run while one of its locks is held.
        _thread.start_new_thread(_send_again, (lost.exc_value.number,))
    else:
        sys.__unraisablehook__(lost)


def _send_again(number: int) -> None:
    time.sleep(AGAIN_SECONDS)
    if signal.getsignal(number) is not _stop:
        return  # the command has ended meanwhile
    if hasattr(signal, "pthread_kill"):  # it also interrupts a system call of the main thread
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


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
