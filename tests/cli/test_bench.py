from __future__ import annotations

import itertools
import json

import pytest
from small_baseline import small_baseline

TINY = ("--suite", "table1", "--rows", "step 5", "--size", "64", "--backbone", "tiny",
        "--device", "cpu", "--threads", "1")  # fmt: skip


@pytest.fixture
def short():
    with small_baseline():
        yield


def test_counts_without_timing(cli, tmp_path):
    path = tmp_path / "counts.json"
    code, out, err = cli(
        "bench", "--suite", "table1", "--rows", "step 5", "--count-only", "--json", path
    )
    assert code == 0, err
    assert "+0.2%" in out
    rows = json.loads(path.read_text())["rows"]
    assert [row["step"] for row in rows] == [0, 5]
    assert round(rows[1]["macs"] / 1e9) in (668, 669)
    assert round(rows[1]["params"] / 1e6, 1) == 316.7


@pytest.mark.usefixtures("short")
def test_a_suite_its_report_and_its_pictures(cli, tmp_path):
    path, folder = tmp_path / "s.json", tmp_path / "report"
    code, out, err = cli(
        "bench", *TINY, "--iterations", "3", "--warmup", "1", "--json", path,
        "--plot-waterfall", tmp_path / "waterfall.png",
    )  # fmt: skip
    assert code == 0, err
    assert "ViT-Adapter + Mask2Former" in out
    assert "paper's size and backbone" in out
    assert json.loads(path.read_text())["kind"] == "suite"
    assert (tmp_path / "waterfall.png").read_bytes().startswith(b"\x89PNG")
    code, again, err = cli("bench", "--report", path, "--report-dir", folder)
    assert code == 0, err
    assert "ViT-Adapter + Mask2Former" in again
    names = {p.name for p in folder.iterdir()}
    assert names == {"report.json", "report.md", "waterfall.png", "latency.png"}


@pytest.mark.usefixtures("short")
def test_a_picture_that_cannot_be_drawn_costs_nothing_else(cli, tmp_path):
    path, folder = tmp_path / "s.json", tmp_path / "report"
    code, _, err = cli(
        "bench", *TINY, "--iterations", "6", "--warmup", "1", "--json", path,
        "--report-dir", folder, "--plot-batches", tmp_path / "batches.png",
    )  # fmt: skip
    assert code == 2
    assert "Only one batch size" in err
    assert json.loads(path.read_text())["kind"] == "suite"
    assert {"report.json", "report.md"} <= {p.name for p in folder.iterdir()}


def test_engines_scopes_scenarios_and_plots(cli, exported, image_path, tmp_path):
    a, b = exported("panoptic"), exported("semantic")
    path = tmp_path / "b.json"
    code, out, err = cli(
        "bench", "--engine", a, "--engine", b, "--scope", "network", "--scope", "end-to-end",
        "--score", "50", "--score", "40", "--iterations", "3", "--image", image_path,
        "--json", path,
        "--plot-pareto", tmp_path / "pareto.png", "--plot-latency", tmp_path / "latency.png",
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(path.read_text())["rows"]
    assert [(r["engine"], r["stage"]) for r in rows] == [
        (p.name, s) for p in (a, b) for s in ("network", "end-to-end")
    ]
    assert rows[0]["ratio"] is None
    assert rows[2]["ratio"]["paired"]
    assert f"times {a.name}" in out
    for name in ("pareto", "latency"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = cli(
        "bench", "--engine", a, "--scenario", "offline", "--batch", "1", "--batch", "2",
        "--scope", "network", "--iterations", "3", "--plot-batches", tmp_path / "batches.png",
    )  # fmt: skip
    assert code == 0, err
    assert "batch 2" in out
    code, out, err = cli(
        "bench", "--engine", a, "--scenario", "server", "--rate", "50", "--serve-seconds", "0.2",
        "--scope", "network", "--iterations", "3",
    )  # fmt: skip
    assert code == 0, err
    assert "Poisson arrivals" in out


def test_an_image_that_is_too_large(cli, exported, picture):
    model = exported("semantic")
    code, _, err = cli("bench", "--engine", model, "--image", picture, "--max-pixels", "100")
    assert code == 2
    assert "limit of 100" in err
    code, _, err = cli("bench", "--suite", "table1", "--max-pixels", "100")
    assert code == 2
    assert "--max-pixels does not apply to --suite" in err


def test_one_file_in_two_run_times(cli, exported, tmp_path):
    pytest.importorskip("openvino")
    model, path = exported("panoptic"), tmp_path / "b.json"
    code, _, err = cli(
        "bench", "--engine", model, "--engine", model, "--backend", "onnxruntime",
        "--backend", "openvino", "--scope", "network", "--iterations", "3", "--json", path,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(path.read_text())["rows"]
    assert [r["engine"] for r in rows] == [f"{model.name}@{b}" for b in ("onnxruntime", "openvino")]
    code, _, err = cli("bench", "--engine", model, "--engine", model, "--backend", "openvino")
    assert code == 2
    assert "given twice" in err
    code, _, err = cli("bench", "--engine", model, "--backend", "openvino", "--backend", "x")
    assert code == 2
    assert "2 times for 1 engines" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "exactly one of --engine FILE"),
        (("--suite", "table1", "--engine", "m.onnx"), "got --engine and --suite"),
        (("--suite", "table9"), "table1"),
        (("--engine", "m.onnx", "--rows", "step 5"), "--rows does not apply to --engine"),
        (("--suite", "table1", "--score", "5"), "--score does not apply to --suite"),
        (("--report", "x.json", "--iterations", "3"), "--iterations does not apply to --report"),
        (("--report", "x.json", "--warmup", "0"), "--warmup does not apply to --report"),
        (("--report", "none.json"), "cannot be read"),
        ((*TINY, "--runtime", "caffe"), "Runtime 'caffe' is unknown"),
        ((*TINY, "--plot-latency", "lunch.jpg"), "--plot-latency lunch.png"),
        ((*TINY, "--plot-pareto", "x.png"), "paper's scores"),
        ((*TINY, "--scenario", "lunch"), "Scenario 'lunch' is unknown"),
        ((*TINY, "--iterations", "1"), "Too few iterations"),
        ((*TINY, "--iterations", "0"), "Too few iterations"),
        ((*TINY, "--seconds", "inf"), "seconds` more than 0"),
        ((*TINY, "--scenario", "server", "--rate", "inf"), "--rate must be a positive number"),
        (
            (*TINY, "--scenario", "server", "--serve-seconds", "0"),
            "--serve-seconds must be a positive",
        ),
        ((*TINY, "--iterations", str(10**12)), "iterations must be at most 1,000,000"),
        ((*TINY, "--warmup", str(10**12)), "warmup must be at most 1,000,000"),
        ((*TINY, "--seconds", "1e9"), "seconds must be at most 604,800"),
        ((*TINY, "--pause", "1e9"), "pause must be at most 3,600"),
        ((*TINY, "--scenario", "offline", "--batch", str(10**9)), "batch must be at most 4,096"),
        ((*TINY, "--scenario", "server", "--rate", "1e9"), "rate must be at most 100,000"),
        ((*TINY, "--scenario", "server", "--serve-seconds", "1e9"), "must be at most 86,400"),
        # Before the model is opened, which is not there:
        (("--engine", "m.onnx", "--iterations", str(10**12)), "iterations must be at most"),
        (("--engine", "m.onnx", "--warmup", str(10**30)), "warmup must be at most"),
        (("--engine", "m.onnx", "--pause", "1e9"), "pause must be at most"),
        (("--engine", "m.onnx", "--scenario", "offline", "--batch", "5000"), "at most 4,096"),
    ],
)
def test_wrong_use(cli, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("bench", *arguments)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [0, -7_000_000])
def test_a_clock_that_is_wrong_is_said(cli, exported, monkeypatch, tmp_path, step):
    ticks = itertools.count(10**15, step)
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(ticks))
    path = tmp_path / "b.json"
    code, out, err = cli(
        "bench", "--engine", exported("panoptic"), "--iterations", "6", "--scope", "network",
        "--json", path,
    )  # fmt: skip
    assert code == 0, err
    assert "0 of 1 VALID" in out
    assert "FPS" in out
    assert "warning: a time of" in err
    assert "the clock" in err
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["fps"], row["verdict"]["valid"]) == (None, False)
