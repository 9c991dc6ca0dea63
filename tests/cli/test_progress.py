"""Elapsed and remaining time in a log, where there is no terminal."""

from __future__ import annotations

import pytest

from eomt_deploy.cli import console
from eomt_deploy.units import time_text


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only if the test says so."""
    now = [100.0]
    monkeypatch.setattr("eomt_deploy.cli.console.time.monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_short_phases_have_no_time():
    assert console.times(1.9, 100) == ""
    assert console.times(3, None) == "3 s elapsed"
    assert console.times(3, 0) == "3 s elapsed"
    assert console.times(30, 90) == "30 s elapsed, about 1 min 30 s left"
    assert [time_text(s) for s in (0.4, 59, 60, 3599, 7500)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 5 min",
    ]  # fmt: skip


def test_steps_say_how_long_they_took(capsys, clock):
    with console.timed_steps() as step:
        step("reading", None)
        clock(1)
        step("tracing", None)
        clock(14)
        step("calibrating (1 of 4)", 0.25)
        clock(5)
        step("calibrating (2 of 4)", 0.5)
        step("calibrating (2 of 4)", 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "reading",
        "tracing",
        "tracing: took 14 s",
        "calibrating (1 of 4) (15 s elapsed, about 45 s left)",
        "calibrating (1 of 4): took 5 s",
        "calibrating (2 of 4) (20 s elapsed, about 20 s left)",
    ]


def test_many_items_are_a_line_from_time_to_time(capsys, clock):
    with console.scored_bar("evaluating", 40) as show:
        for done in range(1, 41):
            clock(1)
            show(done, "PQ 50.1")
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 10 of 40, PQ 50.1, 10 s elapsed, about 30 s left",
        "evaluating: 20 of 40, PQ 50.1, 20 s elapsed, about 20 s left",
        "evaluating: 30 of 40, PQ 50.1, 30 s elapsed, about 10 s left",
        "evaluating: 40 of 40, PQ 50.1, 40 s elapsed",
    ]


def test_a_short_loop_prints_nothing(capsys, clock):
    with console.bar("predicting", 3) as show:
        for done in range(1, 4):
            show(done)
    assert capsys.readouterr().err == ""


def test_a_stopped_loop_says_how_far_it_came(capsys, clock):
    def stopped():
        with console.bar("predicting", 9) as show:
            show(1)
            clock(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "predicting: 1 of 9, 4 s elapsed\n"
