"""Parameters and MACs of our networks compared with all numbers in the paper."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.benchmarking.paper import counting
from eomt_deploy.benchmarking.paper.counting import Counts, count, count_step
from eomt_deploy.benchmarking.paper.ladder import build_step
from eomt_deploy.benchmarking.paper.suite_file import SuiteRow, suites

TABLES = ("table1", "table2", "table3", "table4", "table5", "table6")
EOMT, BASELINE = 0.01, 0.02
MEAN_INPUTS = {"ade20k 0": 1.828, "ade20k 5": 1.828}
"""Mean number of windows per image in the paper's GMACs. It is not in the paper: it is chosen to
match EoMT's number, and the test checks that it also matches the baseline's."""
UNEXPLAINED = {("table1", "step 1"): 741}
"""GMACs by our count, for rows on which the paper contradicts itself; see table1.toml."""


@cache
def counted(step: int, backbone: str, size: tuple[int, int], queries: int, classes: int) -> Counts:
    return count_step(step, backbone, size=size, queries=queries, classes=classes)


def rows() -> list[tuple[str, SuiteRow]]:
    return [
        (name, row)
        for name in TABLES
        for row in suites()[name].rows
        if row.step is not None and (row.paper.gmacs or row.paper.params_m)
    ]


@pytest.mark.parametrize(
    ("table", "row"), [pytest.param(t, r, id=f"{t}-{r.name}") for t, r in rows()]
)
def test_figures_of_the_paper(table: str, row: SuiteRow):
    assert row.step is not None
    found = counted(row.step, row.backbone, row.size, row.queries, row.classes)
    within = EOMT if row.step >= 4 else BASELINE
    if row.paper.params_m is not None:
        assert found.params / 1e6 == pytest.approx(row.paper.params_m, rel=within)
    if row.paper.gmacs is not None:
        want = UNEXPLAINED.get((table, row.name), row.paper.gmacs)
        inputs = MEAN_INPUTS.get(row.name, row.inputs)
        assert found.macs * inputs / 1e9 == pytest.approx(want, rel=within)


def test_every_number_of_the_tables_has_a_row():
    """A missing row of a suite must not go unnoticed."""
    assert len(rows()) == 6 + 3 + 12 + 3 + 4
    assert sum(len(suites()[name].rows) for name in TABLES) == 6 + 9 + 12 + 7 + 4 + 4


def test_masking_costs_the_predictions_before_each_of_the_last_blocks():
    masked = counted(4, "large", (640, 640), 200, 133)
    plain = counted(5, "large", (640, 640), 200, 133)
    assert masked.params == plain.params
    assert round(masked.macs / 1e9) == 828
    assert round(plain.macs / 1e9) == 669


@pytest.mark.parametrize("step", [3, 4, 5])
def test_neither_device_nor_attention_changes_the_count(step):
    options = {"size": (64, 96), "queries": 6, "classes": 5}
    wanted = count_step(step, "tiny", **options)
    images = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)
    for attention in ("sdpa", "written"):
        model = build_step(step, "tiny", attention=attention, **options)
        found = count(model, images)
        assert (found.params, found.macs) == (wanted.params, wanted.macs)
        assert sum(found.operators.values()) == found.macs
        assert count(model, images.expand(2, -1, -1, -1)).macs == 2 * found.macs


@pytest.mark.parametrize("step", [0, 5])
def test_remembered_shapes_do_not_change_the_count(step, monkeypatch):
    options = {"size": (64, 96), "queries": 6, "classes": 5}
    found = count_step(step, "tiny", **options)
    monkeypatch.setattr(counting, "_described", lambda value: object())  # nothing is known
    assert count_step(step, "tiny", **options) == found


class Sampling(nn.Module):
    """Bilinear sampling at a 5x5 grid of locations."""

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, torch.zeros(x.shape[0], 5, 5, 2), align_corners=False)


# fvcore's counts for single layers.
@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 8, 8), 64 * 4 * 6 * 9),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 8, 8), 64 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 8, 8), 64 * 4 * 6 * 4),
        (nn.LayerNorm(16), (2, 16), 5 * 32),
        (nn.GroupNorm(2, 16), (2, 16, 3, 3), 5 * 288),
        (nn.BatchNorm2d(16).eval(), (2, 16, 3, 3), 2 * 288),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 4, 4), 4 * 192),
        (Sampling(), (1, 3, 6, 6), 4 * 3 * 5 * 5),
        (nn.GELU(), (4, 4), 0),
        (nn.Softmax(-1), (4, 4), 0),
    ],
)
def test_conventions_of_fvcore(layer, shape, macs):
    assert count(layer, torch.zeros(shape)).macs == macs
