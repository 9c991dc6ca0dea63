"""Signals end a command, wherever they arrive."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LOST = """
import signal, sys, time, weakref
from eomt_deploy.cli.stopping import stop_in_order

class Thing:
    pass

class Closing:
    def __del__(self):
        signal.raise_signal(NUMBER)

def end(_):
    signal.raise_signal(NUMBER)

stop_in_order()
thing = Closing() if KIND == "__del__" else Thing()
kept = weakref.ref(thing, end) if KIND == "weak reference" else None
del thing
print("goes on", flush=True)
time.sleep(60)
print("was not stopped")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["__del__", "weak reference"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_callback_that_may_not_raise(kind, number):
    """Python ignores the exception of the handler there."""
    code = LOST.replace("NUMBER", str(int(number))).replace("KIND", repr(kind))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "goes on\n", "")


def test_other_lost_exceptions_are_shown():
    code = (
        "from eomt_deploy.cli.stopping import stop_in_order\n"
        "class Wrong:\n    def __del__(self): raise ValueError('reason')\n"
        "stop_in_order()\nWrong()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "ValueError: reason" in done.stderr


def test_the_last_lines_are_printed_if_the_signal_came_in_a_print():
    """rich has begun to collect text then, and does not end it."""
    code = (
        "import signal\n"
        "from rich.console import Console\n"
        "from eomt_deploy.cli import main, stopping\n"
        "def interrupted(self):\n"
        "    self._buffer_index += 1\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "Console.__enter__ = interrupted\n"
        "stopping.stop_in_order()\n"
        "main(['list'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "stopped by SIGTERM\n"
