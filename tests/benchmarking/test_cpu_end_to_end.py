"""The CPU benchmark: both sides do the same work and return the same result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cpu_cases import (
    BASE,
    GROUPS,
    OURS,
    agreement,
    extra_memory,
    judge_goal,
    plot,
    ratios,
)
from cpu_end_to_end import post_jobs
from synthetic import HARD, made_up_outputs, spec_of

from eomt_deploy.processing.geometry import plan

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("task", "size"), [("panoptic", (180, 320)), ("instance", (240, 320)), ("semantic", (256, 350))]
)
def test_both_give_the_same_result(task, size):
    jobs = post_jobs(task, size)
    mine = jobs[OURS]()
    assert len(mine.regions()) > 5
    assert agreement(task, mine, jobs[BASE]()) > 0.9995


@pytest.mark.parametrize(("task", "kind"), HARD)
def test_hard_outputs_give_the_same_result_too(task, kind):
    jobs = post_jobs(task, (200, 240), kind)
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


def test_the_plot_of_the_committed_results():
    """Three panels; each backend is a bar with its interval."""
    path = ROOT / "benchmarks/results/amd-epyc-2-cores/cpu_end_to_end.json"
    runs = json.loads(path.read_text())["runs"]
    assert plot(runs).startswith(b"\x89PNG")
    for section in GROUPS:
        found = ratios(runs, section)
        assert len(found) >= 2
        for rows in found.values():
            assert BASE not in rows
            assert all(low <= value <= high for value, low, high in rows.values())
    one = [{"section": "network", "case": "S 640", "rows": {
        BASE: {"times_as_fast": {"value": 1, "low": 1, "high": 1}},
        OURS: {"times_as_fast": {"value": value, "low": value - 1, "high": value + 1}},
    }} for value in (4, 2, 3)]  # fmt: skip
    assert ratios([[case] for case in one], "network") == {"S 640": {OURS: (3, 1, 5)}}
