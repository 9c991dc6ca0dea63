"""The CPU benchmark: both sides do the same work and return the same result."""

from __future__ import annotations

import pytest
from cpu_cases import (
    BASE,
    OURS,
    agreement,
    extra_memory,
    judge_goal,
)
from cpu_end_to_end import post_jobs
from synthetic import HARD, made_up_outputs, spec_of

from eomt_deploy.processing.geometry import plan


@pytest.mark.parametrize(
    ("task", "size"), [("panoptic", (180, 320)), ("instance", (240, 320)), ("semantic", (512, 700))]
)
def test_both_give_the_same_result(task, size):
    jobs = post_jobs(task, size)
    mine = jobs[OURS]()
    assert len(mine.regions()) > 5
    assert agreement(task, mine, jobs[BASE]()) > 0.9995


@pytest.mark.parametrize(("task", "kind"), HARD)
def test_hard_outputs_give_the_same_result_too(task, kind):
    jobs = post_jobs(task, (512, 600), kind)
    mine = jobs[OURS]()
    assert mine.regions()
    assert agreement(task, mine, jobs[BASE]()) > 0.999


def test_outputs_are_made_up_for_every_window():
    spec = spec_of("semantic")
    geometry = plan((300, 1000), spec.image_size, spec.resize)
    classes, masks = made_up_outputs(spec, geometry)
    assert geometry.num_inputs > 2
    assert classes.shape == (geometry.num_inputs, 200, 151)
    assert masks.shape == (geometry.num_inputs, 200, *spec.mask_size)


def test_memory_of_a_call():
    found = extra_memory(lambda: bytearray(50_000_000))
    assert 40e6 < found < 70e6


@pytest.mark.parametrize(
    ("low", "high", "valid", "finding"),
    [(31, 40, True, "reached"), (20, 29, True, "missed"), (25, 40, True, "no conclusion"),
     (31, 40, False, "no conclusion")],
)  # fmt: skip
def test_goals_are_judged_by_the_interval(low, high, valid, finding):
    reasons = [] if valid else [{"kind": "other load", "text": "busy"}]
    row = {"times_as_fast": {"low": low, "high": high}, "verdict": {"reasons": reasons}}
    assert judge_goal(row, 30) == finding
