from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.backends.tensorrt.monitor import Phases, run_cancellable

NAMES = st.sampled_from("abcd")
EVENTS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.none() | NAMES, st.integers(0, 5)),
    st.tuples(st.just("step"), NAMES),
    st.tuples(st.just("finish"), NAMES),
)


def test_nested_phases_add_up():
    phases = Phases()
    phases.start("build", None, 4)
    phases.step("build")
    assert phases.fraction == 0.25
    phases.start("tactics", "build", 2)
    phases.step("tactics")
    assert phases.fraction == 0.375
    phases.finish("tactics")
    phases.step("build")
    assert phases.fraction == 0.5
    phases.finish("build")
    assert phases.fraction == 0.5


@given(st.lists(EVENTS, max_size=40).filter(lambda e: all(x[1] != x[2] for x in e if len(x) == 4)))
def test_whatever_the_library_says_the_bar_only_grows(events):
    phases, before, parents = Phases(), 0.0, {}
    for kind, name, *rest in events:
        if kind == "start":
            ancestor = rest[0]
            while ancestor is not None and ancestor != name:
                ancestor = parents.get(ancestor)
            if ancestor == name:
                continue  # a phase inside itself is not a tree
            parents[name] = rest[0]
        getattr(phases, kind)(name, *rest)
        now = phases.fraction
        assert 0 <= before <= now <= 1
        before = now


def test_work_runs_elsewhere_and_its_result_and_errors_come_back():
    cancelled = threading.Event()
    assert run_cancellable(threading.get_ident, cancelled) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        run_cancellable(lambda: 1 // 0, cancelled)
    assert not cancelled.is_set()
