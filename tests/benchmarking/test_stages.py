from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from eomt_deploy import Segmenter
from eomt_deploy.benchmarking import Report, Row, bench_stages, tables
from eomt_deploy.benchmarking.engine_plots import draw_engines
from eomt_deploy.benchmarking.measure.clock import Rounds
from eomt_deploy.benchmarking.stages import stage_settings
from eomt_deploy.errors import UsageError, VerificationError

PLAN = stage_settings()


def test_row_statistics():
    row = Row("m", "onnxruntime", "cpu", "network", tuple(float(i) for i in range(1, 102)))
    assert row.percentile(50) == 51
    assert row.percentile(95) == 96
    assert row.fps == pytest.approx(1000 / 51)
    assert Row("m", "o", "cpu", "n", (2.0, 2.0)).cv == 0


def test_report_warns_of_what_makes_numbers_wrong():
    steady = Row("m", "o", "cpu", "network", (10.0, 10.1, 10.0))
    shaky = Row("m", "o", "cpu", "decode", (1.0, 3.0, 1.0))
    quiet = {"load_average": 0.1, "cores": 2}
    assert Report(quiet, "x", (steady,), 0.1).warnings == []
    assert "decode: unstable" in Report(quiet, "x", (steady, shaky), 0.1).warnings[0]
    assert "busy" in Report(quiet | {"load_average": 1.9}, "x", (steady,), 0.1).warnings[0]


def test_stages_of_two_engines(exported, image_path):
    paths = [exported("panoptic"), exported("semantic")]
    segmenters = [(path.name, Segmenter(path)) for path in paths]
    report = bench_stages(segmenters, image_path, PLAN, Rounds(3, warmup=0), threads=2)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["schema"] == 1
    assert data["environment"]["cpu"]
    assert data["environment"]["versions"]["onnxruntime"]
    assert [(r["engine"], r["stage"]) for r in data["rows"]] == [
        (path.name, stage) for path in paths for stage in PLAN.stages
    ]
    for row in data["rows"]:
        assert row["unit"] == "ms"
        assert len(row["samples"]) == 3
        assert min(row["samples"]) <= row["p50"] <= row["p95"] <= max(row["samples"])


def test_too_few_rounds_or_unknown_stages(exported, image_path):
    with Segmenter(exported("panoptic")) as segmenter:
        engines = [("m", segmenter)]
        with pytest.raises(UsageError, match="Too few iterations"):
            bench_stages(engines, image_path, PLAN, Rounds(1, warmup=3))
        with pytest.raises(UsageError, match="lunch"):
            bench_stages(engines, image_path, replace(PLAN, stages=("lunch",)))


def test_a_model_that_gives_nan_is_not_measured(exported, image_path, monkeypatch):
    with Segmenter(exported("panoptic")) as segmenter:
        real = segmenter.engine.run
        monkeypatch.setattr(
            segmenter.engine, "run", lambda images: (real(images)[0] * np.nan, real(images)[1])
        )
        for stage in ("network", "decode"):
            with pytest.raises(VerificationError, match=r"gives NaN or infinite logits on .*jpg"):
                bench_stages([("m", segmenter)], image_path, PLAN, Rounds(2), stages=(stage,))


WRONG = {
    "backwards": (lambda: itertools.count(10**15, -7_000_000), "the clock went backwards"),
    "constant": (lambda: itertools.repeat(5), "the clock did not advance"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("scenario", ["single", "offline", "server"])
def test_a_clock_that_is_wrong_makes_no_number_valid(
    exported, image_path, monkeypatch, kind, scenario
):
    times, words = WRONG[kind]
    ticks = times()
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(ticks))
    with Segmenter(exported("panoptic")) as one, Segmenter(exported("semantic")) as other:
        report = bench_stages(
            [("a", one), ("b", other)], image_path, PLAN, Rounds(8, warmup=1), scenario=scenario,
            batches=(1, 2), stages=("preprocess", "network"),
        )  # fmt: skip
    assert not any(row.verdict.valid for row in report.rows)
    for row in report.rows:
        assert str(row.verdict).startswith("INVALID: clock")
        assert report.ratio(row) is None
    assert any(words in warning for warning in report.warnings)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert all(row["fps"] is None for row in data["rows"])
    shown = tables.engine_sheet(report)
    assert shown.title.startswith("0 of")
    if scenario == "server":
        assert [served["verdict"]["valid"] for served in data["served"]] == [False, False]
        assert "INVALID" in tables.served_sheet(report.served).markdown()
    for name in ("pareto", "latency", "batches"):
        with pytest.raises(UsageError, match="no row has valid times"):
            draw_engines(name, report)


def test_one_wrong_time_is_enough():
    fine = Row("a", "o", "cpu", "network", (10.0,) * 9)
    wrong = replace(fine, engine="b", samples=(10.0,) * 8 + (-1.0,))
    report = Report({"load_average": 0, "cores": 2}, "x", (fine, wrong), 0.1)
    assert (fine.timed, wrong.timed) == (True, False)
    assert report.ratio(wrong) is None
    assert draw_engines("latency", report).startswith(b"\x89PNG")


def test_batches_and_rates_that_are_absurd(exported, image_path):
    with Segmenter(exported("panoptic")) as segmenter, pytest.raises(UsageError, match="at most"):
        bench_stages([("m", segmenter)], image_path, PLAN, Rounds(10**12))
