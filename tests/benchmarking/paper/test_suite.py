from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_baseline import small_baseline

from eomt_deploy.backends.engine import Outputs
from eomt_deploy.benchmarking import tables
from eomt_deploy.benchmarking.measure.clock import Rounds
from eomt_deploy.benchmarking.paper import plots, suite
from eomt_deploy.benchmarking.paper.cases import NOT_FINITE, describe
from eomt_deploy.benchmarking.paper.ladder import build_step
from eomt_deploy.benchmarking.paper.report import SuiteReport, read_reports
from eomt_deploy.benchmarking.paper.runtimes import Case, find_runtime, why_unavailable
from eomt_deploy.benchmarking.paper.suite import run_suite
from eomt_deploy.benchmarking.paper.suite_config import SuiteConfig
from eomt_deploy.benchmarking.paper.suite_file import find_suite
from eomt_deploy.benchmarking.paper.torch_runtimes import TorchRunning
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, UsageError

SUITE = find_suite("table1")
TINY = {
    "suite": SUITE, "rows": ("step 4", "step 5"), "size": (64, 64), "backbone": "tiny",
    "device": "cpu", "rounds": Rounds(4, 1), "probe": False, "threads": 1,
}  # fmt: skip
STEP_5 = TINY | {"rows": ("step 5",)}
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def short():
    gc.collect()
    gc.freeze()  # each run of a suite collects garbage several times
    with small_baseline():
        yield


@pytest.fixture(scope="module")
def report(image_path) -> SuiteReport:
    """Three rows in two runtimes and all scopes, interleaved in the same rounds."""
    messages: list[str] = []
    config = SuiteConfig(
        **(TINY | {"probe": True}), image=image_path,
        runtimes=("torch-eager", "onnxruntime"),
        scopes=("network", "network+copies", "end-to-end"),
    )  # fmt: skip
    saved: list[SuiteReport] = []
    found = run_suite(config, log=messages.append, save=saved.append)
    assert any("onnxruntime" in line for line in messages)
    assert saved == [found]
    return found


def test_every_row_runtime_and_scope_is_measured_beside_the_base(report):
    assert report.skipped == []
    assert len(report.measurements) == 3 * 2 * 3
    for m in report.measurements:
        assert len(m.samples) == 4
        assert min(m.samples) > 0
        assert m.prepare_seconds > 0
        ratio = report.ratio(m)
        assert (ratio is None) == (m.row == "step 0")
        assert ratio is None or (ratio.paired and ratio.value > 1)  # a ViT-Adapter is always slower
        assert (report.tflops(m) is None) == (m.scope == "end-to-end")
        assert (report.runtime_ratio(m) is None) == (m.runtime == "torch-eager")
    assert set(report.peaks) == {"fp32"}
    assert report.sizes["step 4"].params == report.sizes["step 5"].params
    assert report.sizes["step 4"].macs > report.sizes["step 5"].macs


def test_the_papers_own_ratios(report):
    assert report.paper_ratio("step 5") == pytest.approx(128 / 29)
    assert report.paper_ratio("step 0") is None


def test_round_trip_by_file(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_dict()))
    (again,) = read_reports(path)
    assert again.rows == report.rows
    for have, want in zip(again.measurements, report.measurements, strict=True):
        np.testing.assert_allclose(have.samples, want.samples, atol=1e-4)
        assert have.verdict == want.verdict
    assert tables.markdown(again).count("\n") == tables.markdown(report).count("\n")
    sections = {"kind": "sections", "sections": [report.to_dict(), {"kind": "facts"}]}
    path.write_text(json.dumps(sections))
    assert len(read_reports(path)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is not a valid suite report"),
        ("[1]", "is not a valid suite report"),
        ("{}", "does not contain a suite"),
        ('{"kind": "suite", "schema": 99}', "must have schema 1, got 99"),
        ('{"kind": "suite", "schema": 1}', "is not a valid suite report"),
    ],
)
def test_what_is_no_report(text, words, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_reports(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_reports(tmp_path / "none.json")


DAMAGE = {
    "no samples": lambda d: d["measurements"][0].update(samples=[]),
    "no time": lambda d: d["measurements"][0].update(samples=[0.0, 0.0]),
    "words": lambda d: d["measurements"][0].update(samples=["fast"]),
    "row": lambda d: d["measurements"][0].update(row="lunch"),
    "settings": lambda d: d.update(settings={}),
    "environment": lambda d: d.update(environment={}),
    "peak": lambda d: d["peaks"]["fp32"].update(tflops=0),
    "precision": lambda d: d["measurements"][0].update(precision=None),
    "size": lambda d: d["rows"][0].update(size=[[], 64]),
    "parameters": lambda d: d["rows"][0].update(params="many"),
    "long": lambda d: d.update(peaks="p" * 10_000, suite={"x" * 10_000: 1}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_reports_are_rejected(report, damage, tmp_path):
    data = json.loads(json.dumps(report.to_dict()))
    damage(data)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="is not a valid suite report") as error:
        read_reports(path)
    assert len(str(error.value)) < 1000


def test_sections_that_were_left_out_are_reported(report, tmp_path):
    path = tmp_path / "x.json"
    facts = {"kind": "facts", "left_out": ["table3"], "failed": ["Traceback\nMemoryError: all"]}
    path.write_text(json.dumps({"kind": "sections", "sections": [facts, report.to_dict()]}))
    text = tables.markdown(read_reports(path)[0])
    assert "for lack of time: table3" in text
    assert "a section failed: MemoryError: all" in text


def test_tables_say_what_was_measured_where(report):
    text = tables.markdown(report)
    assert report.environment["cpu"] in text
    assert "torch-eager on cpu, fp32, network, 64 pixels" in text
    assert "Runtimes side by side" in text
    assert "not the paper's size and backbone" in text
    assert "random weights" in text
    sheets = tables.sheets(report)
    assert len(sheets) == 1 + 6 + 1
    assert all(len(row) == len(sheet.headers) for sheet in sheets for row in sheet.rows)
    line = next(row for row in sheets[1].rows if row[0] == "without masking = EoMT")
    assert "128" in line


def test_pictures(report):
    assert plots.drawable([report]) == ["waterfall", "latency"]  # no score at these sizes
    for name in ("waterfall", "latency"):
        assert plots.draw(name, [report]).startswith(PNG)
    with pytest.raises(UsageError, match="no row with a score"):
        plots.draw("pareto", [report])
    report.settings["changed"] = ""
    try:
        assert "pareto" in plots.drawable([report])
        assert plots.draw("pareto", [report]).startswith(PNG)
    finally:
        report.settings["changed"] = "size and backbone"


def test_the_waterfall_draws_valid_rows():
    """On the H200 the eager rows were measured first, and are INVALID."""
    results = Path(__file__).parents[3] / "benchmarks" / "results" / "nvidia-h200"
    (measured,) = read_reports(results / "gpu_paper.json")
    assert not any(m.verdict.valid for m in measured.measurements if m.runtime == "torch-eager")
    drawn = plots._main(measured)
    assert [m.runtime for m in drawn] == ["torch-graph"] * 6
    assert measured.ratio(drawn[-1]).value == pytest.approx(4.26, abs=0.01)


def test_several_reports_take_the_first_that_has_the_picture(report):
    sweep = run_suite(SuiteConfig(**STEP_5, scenario="offline", batches=(1, 2)))
    assert {m.batch for m in sweep.measurements} == {1, 2}
    assert sweep.measurements[1].fps == pytest.approx(2000 / sweep.measurements[1].percentile(50))
    assert "batches" in plots.drawable([report, sweep])
    assert plots.draw("batches", [report, sweep]).startswith(PNG)
    with pytest.raises(UsageError, match="Only one batch size"):
        plots.draw("batches", [report])


def test_server_scenario_reports_latency_and_loss():
    config = SuiteConfig(**STEP_5, scenario="server", rate=30.0, serve_seconds=0.3)
    found = run_suite(config)
    assert [s.row for s in found.served] == ["step 0", "step 5"]
    assert all(0 <= s.loss <= 1 and s.seconds > 0 for s in found.served)
    assert "Poisson arrivals" in tables.markdown(found)


def test_what_cannot_be_measured_is_skipped_with_words():
    found = run_suite(
        SuiteConfig(**TINY, runtimes=("torch-eager", "tensorrt"), precision="bf16", budget=1e-9)
    )
    reasons = {(s.runtime, s.row): s.reason for s in found.skipped}
    assert "tensorrt" in reasons["tensorrt", "all rows"]
    assert "time budget" in reasons["torch-eager", "step 5"]
    assert found.measurements == []


def test_a_row_that_breaks_does_not_cost_the_others(monkeypatch):
    real = suite.open_case

    def open_case(row, *arguments):
        if row.name == "step 4":
            raise RuntimeError("out of memory\nand so on")
        return real(row, *arguments)

    monkeypatch.setattr(suite, "open_case", open_case)
    found = run_suite(SuiteConfig(**TINY))
    assert [s.reason for s in found.skipped] == ["RuntimeError: out of memory"]
    assert {m.row for m in found.measurements} == {"step 0", "step 5"}


def test_a_failure_while_measuring_is_a_skipped_row(monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no memory")

    monkeypatch.setattr(suite, "measure", broken)
    found = run_suite(SuiteConfig(**TINY))
    assert found.measurements == []
    assert {s.reason for s in found.skipped} == {
        "failed during the measurement: MemoryError: no memory"
    }


@pytest.fixture(scope="module")
def run_case(tmp_path_factory) -> Callable[..., Outputs]:
    """Run a step of the ladder, with the networks of :func:`report`."""
    folder = tmp_path_factory.mktemp("cases")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)

    def run(step: int, runtime: str, precision: str) -> Outputs:
        row = next(r for r in SUITE.select((f"step {step}",), (64, 64), "tiny") if r.step == step)

        def build(attention, device):
            return build_step(
                step, "tiny", size=row.size, queries=row.queries, classes=row.classes,
                attention=attention,
            )  # fmt: skip

        spec = describe(row, precision, 1)
        case = Case(row, build, images, "cpu", precision, spec, folder)
        running = find_runtime(runtime).open(case)
        running.network()
        running.copies()
        return running.run(images)

    run.folder = folder
    return run


@pytest.mark.parametrize(
    ("step", "runtime", "precision", "tolerance"),
    [
        (5, "torch-compile", "fp32", 1e-3),
        (5, "torch-eager", "amp-bf16", 0.1),
        (0, "onnxruntime", "fp32", 1e-3),
        (4, "onnxruntime", "fp32", 1e-3),
        (5, "onnxruntime", "fp32", 1e-3),
    ],
)
def test_every_runtime_computes_the_same(run_case, step, runtime, precision, tolerance):
    """Half precision, compilation and export on the CPU, compared with eager mode."""
    outputs, expected = run_case(step, runtime, precision), run_case(step, "torch-eager", "fp32")
    for have, want in zip(outputs, expected, strict=True):
        assert np.abs(have - want).max() < tolerance * np.abs(want).max()


@pytest.mark.parametrize(("step", "samplings"), [(0, 3 + 1 + 3), (4, 0)])
def test_exported_graphs_sample_only_in_the_baseline(run_case, step, samplings):
    """Injector and pixel decoder sample 3 maps, the extractor one."""
    run_case(step, "onnxruntime", "fp32")
    graph = onnx.load(run_case.folder / f"step-{step}.1.onnx", load_external_data=False).graph
    assert sum(node.op_type == "GridSample" for node in graph.node) == samplings


def test_runtimes_say_why_they_cannot_run():
    assert why_unavailable(find_runtime("torch-eager"), "cpu", "fp32") is None
    assert "only on cuda" in why_unavailable(find_runtime("torch-graph"), "cpu", "fp32")
    assert "only fp32" in why_unavailable(find_runtime("onnxruntime"), "cpu", "amp-fp16")
    with pytest.raises(UsageError, match="Runtime 'caffe' is unknown"):
        find_runtime("caffe")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scopes": ("lunch",)}, "scope 'lunch'"),
        ({"precision": "fp64"}, "precision 'fp64'"),
        ({"batches": (1, 2)}, "offline scenario"),
        ({"batches": (0,)}, "at least 1, got 0"),
        (
            {"batches": (1, 2), "scenario": "offline", "scopes": ("end-to-end",), "image": "x"},
            "end-to-end needs batch size 1, got 2",
        ),
        ({"rate": float("inf"), "scenario": "server"}, "positive number"),
        ({"scopes": ("end-to-end",)}, "needs an image"),
        ({"rate": 2.0}, "server scenario"),
        ({"runtimes": ("caffe",)}, "Runtime 'caffe'"),
    ],
)
def test_configurations_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        SuiteConfig(**(TINY | options))


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(DeviceError, match="finds no GPU"):
        run_suite(SuiteConfig(**(TINY | {"device": "cuda"})))


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no NVIDIA GPU")
def test_on_a_gpu():
    options = TINY | {"device": None, "precision": "fp16"}
    found = run_suite(SuiteConfig(**options, runtimes=("torch-eager", "torch-graph")))
    assert found.skipped == []
    assert {m.device for m in found.measurements} == {"cuda"}
    assert all(m.host for m in found.measurements)


def test_the_baseline_and_the_last_step_are_opened_first():
    def order(*names):
        config = SuiteConfig(suite=SUITE, rows=names)
        return [row.name[-1] for row in suite.opening_order(config, SUITE.select(names))]

    assert order() == ["0", "5", "4", "3", "2", "1"]
    assert order("step 5", "step 4") == ["5", "4", "0"]


@pytest.mark.parametrize(
    ("ticks", "words"),
    [(itertools.count(10**15, -7_000_000), "backwards"), (itertools.repeat(5), "did not advance")],
)
def test_a_clock_that_is_wrong_makes_no_number_valid(monkeypatch, ticks, words, tmp_path):
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(ticks))
    options = STEP_5 | {"probe": True, "rounds": Rounds(8, 1)}
    found = run_suite(SuiteConfig(**options, scenario="server", serve_seconds=0.1))
    assert found.measurements
    for m in found.measurements:
        assert str(m.verdict).startswith("INVALID: clock")
        assert found.ratio(m) is found.tflops(m) is found.peak_share(m) is None
    assert found.peaks == {}
    assert any("no peak of fp32" in note and words in note for note in found.notes)
    assert not any(served.verdict.valid for served in found.served)
    json.dumps(found.to_dict(), allow_nan=False)
    text = tables.markdown(found)
    assert words in text
    assert "INVALID" in text
    assert plots.drawable([found]) == []
    with pytest.raises(UsageError, match="nothing to draw"):
        plots.draw("waterfall", [found])


def test_random_weights_that_give_nan_are_remarked(monkeypatch):
    monkeypatch.setattr(TorchRunning, "run", lambda self, images: (np.zeros(1), np.array([np.nan])))
    found = run_suite(SuiteConfig(**STEP_5))
    assert {m.remark for m in found.measurements} == {NOT_FINITE}
    assert NOT_FINITE in tables.markdown(found)


@pytest.mark.parametrize("options", [{"batches": (10**6,)}, {"serve_seconds": 1e9}])
def test_configurations_that_would_never_end(options):
    with pytest.raises(UsageError, match="must be at most"):
        SuiteConfig(**TINY, **options)


def test_the_pareto_front():
    points = [(10, 50), (20, 45), (15, 44), (30, 45), (5, 49), (40, 10)]
    assert plots.front(points) == [(10, 50), (30, 45), (40, 10)]
    assert plots.front([]) == []
    assert plots.front([(1, 2), (1, 3)]) == [(1, 3)]


def test_histograms_share_the_time_axis():
    _, panels = plots.new_panels(2)
    panels[0].hist([1, 2])
    panels[1].hist([100, 200])
    assert panels[0].get_xlim() == panels[1].get_xlim()
