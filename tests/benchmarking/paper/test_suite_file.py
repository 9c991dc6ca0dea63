from __future__ import annotations

import pytest

from eomt_deploy.benchmarking.machine import roofline
from eomt_deploy.benchmarking.paper.cases import describe
from eomt_deploy.benchmarking.paper.grouping import WIDTHS, Need, free_bytes, need, pack
from eomt_deploy.benchmarking.paper.ladder import BACKBONES
from eomt_deploy.benchmarking.paper.suite_file import Suite, find_suite, suites
from eomt_deploy.errors import UsageError


@pytest.mark.parametrize("name", suites())
def test_suites_are_complete_and_round_trip(name):
    suite = find_suite(name)
    assert Suite.from_dict(suite.to_dict()) == suite
    names = [row.name for row in suite.rows]
    assert len(set(names)) == len(names)
    assert all(suite.base_of(row) in names for row in suite.rows)
    assert {row.backbone for row in suite.rows if row.step is not None} <= set(BACKBONES)
    assert suite.source.startswith(("arXiv 2503.19108", "official model zoo"))


def test_selecting_brings_the_base_and_changes_sizes():
    suite = find_suite("table1")
    rows = suite.select(("step 5",), size=(96, 64), backbone="tiny")
    assert [(r.name, r.size, r.backbone) for r in rows] == [
        ("step 0", (96, 64), "tiny"),
        ("step 5", (96, 64), "tiny"),
    ]
    assert len(suite.select()) == 6
    with pytest.raises(UsageError, match="Row 'step 9' of table1"):
        suite.select(("step 9",))
    with pytest.raises(UsageError, match=r"Use one of: .*table1"):
        find_suite("table9")


def test_quoted_rows_are_not_measured():
    suite = find_suite("table4")
    quoted = [row.name for row in suite.rows if row.step is None]
    assert quoted
    assert not {row.name for row in suite.select()} & set(quoted)
    with pytest.raises(UsageError, match="only quotes the paper's numbers"):
        suite.select((quoted[0],))


def test_table_2_compares_each_backbone_with_its_own_baseline():
    suite = find_suite("table2")
    printed = {"dinov2": (29, 61, 128), "deit3": (29, 61, 128), "eva02": (25, 52, 77)}
    for family, fps in printed.items():
        rows = [row for row in suite.rows if row.name.startswith(family)]
        assert [row.step for row in rows] == [0, 4, 5]
        assert tuple(row.paper.fps for row in rows) == fps
        assert {suite.base_of(row) for row in rows} == {f"{family} 0"}
        backbone = describe(rows[0], "fp16", 1).backbone
        assert (backbone.family, backbone.registers) == (family, 4 if family == "dinov2" else 0)
    # The rows with DINOv2 are in table 1.
    ladder = {row.step: row.paper for row in find_suite("table1").rows}
    assert all(row.paper == ladder[row.step] for row in suite.rows[:3])


def test_rate_of_a_network():
    assert roofline.tflops(669e9, 7.8) == pytest.approx(171.5, rel=1e-3)  # the paper's 128 FPS
    assert roofline.arithmetic("amp-bf16") == "bf16"


def test_peak_of_this_machine():
    peaks, missing = roofline.probe("cpu", ("fp32", "amp-fp32"), sides=(128, 256), seconds=0.01)
    assert missing == {}
    assert list(peaks) == ["fp32"]
    assert 1e-4 < peaks["fp32"].tflops < 100
    assert peaks["fp32"].side in (128, 256)


def test_peak_that_cannot_be_measured_is_said(monkeypatch):
    def broken(device, precision, side):
        raise RuntimeError("no such product\nand more")

    monkeypatch.setattr(roofline, "_product", broken)
    assert roofline.probe("cpu", ("bf16",)) == ({}, {"bf16": "no such product"})


def test_widths_are_the_ladders():
    assert {n: dims.width for n, dims in BACKBONES.items() if "-" not in n} == WIDTHS
    assert all(dims.width == WIDTHS[n.split("-")[0]] for n, dims in BACKBONES.items())


def test_what_fits_is_measured_together_beside_its_base():
    needs = {name: Need(10.0, 5.0) for name in "abcd"} | {"huge": Need(900.0, 1.0)}
    bases = dict.fromkeys([*"abcd", "huge"], "a")
    assert pack([*"abcd"], needs, bases, 100) == ([("a", "b", "c", "d")], [])
    assert pack([*"abcd"], needs, bases, 36) == ([("a", "b", "c"), ("a", "d")], [])
    assert pack([*"abcd"], needs, bases, 25) == ([("a", "b"), ("a", "c"), ("a", "d")], [])
    # A row that only fits without its base, and a row that does not fit at all.
    assert pack(["a", "b", "huge"], needs, bases, 16) == ([("a",), ("b",)], ["huge"])


def test_memory_is_estimated_on_the_large_side():
    row = find_suite("table1").select(("step 5",))[1]
    eager = need(row, 316_000_000, "fp16", ("torch-eager",))
    assert 1.2e9 < eager.weights < 2e9
    assert need(row, 316_000_000, "fp16", ("torch-eager", "onnxruntime")).weights > eager.weights
    assert need(row, 1, "fp32", (), batch=2).activations == 4 * eager.activations
    assert free_bytes("cpu") > 1e8
