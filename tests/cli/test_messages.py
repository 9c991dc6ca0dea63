"""The words of messages that were misleading once: each names the next step."""

from __future__ import annotations

import pytest

from eomt_deploy.backends.openvino.build import OpenVinoReport, Trial
from eomt_deploy.benchmarking.measure.clock import Rounds, rounds_line
from eomt_deploy.benchmarking.measure.scenarios import Served
from eomt_deploy.benchmarking.tables import served_sheet
from eomt_deploy.precision import computes_in
from eomt_deploy.units import logit_error, percent

TINY = "eomt-tiny-scenes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", TINY, "-o", "m1.trt"), "fix: TensorRT engines end with .engine here: use -o m1.engine."),  # noqa: E501
        (("build", "m.onnx", "-o", "m1.plan"), "use -o m1.engine."),
        (("build", "m.onnx", "-o", "m1"), "fix: Use -o m1/ (ONNX Runtime Web), m1.mlpackage (Core ML), m1.pte (ExecuTorch), m1.xml (OpenVINO) or m1.engine (TensorRT)."),  # noqa: E501
        (("export", TINY, "-o", "m1.h5"), "m1.onnx (any backend), m1.pt2 (AOTInductor), m1/ (ONNX Runtime Web), m1.mlpackage (Core ML), m1.pte (ExecuTorch), m1.xml"),  # noqa: E501
        (("export", TINY, "-o", "m.pte", "--precision", "int8"), "eomt-deploy has no INT8 for ExecuTorch.\n  fix: Use --precision fp32, or export to .onnx."),  # noqa: E501
        (("export", TINY, "-o", "m.xml", "--precision", "fp8"), "no FP8 for OpenVINO.\n  fix: Use --precision fp32 or bf16"),  # noqa: E501
        (("export", TINY, "-o", "s/", "--precision", "bf16"), "s/index.html cannot be built: eomt-deploy has no BF16"),  # noqa: E501
        (("export", TINY, "-o", "m.pte", "--attention", "fused"), "m.pte cannot be built: ExecuTorch has no operator for fused attention.\n  fix: Leave out --attention fused."),  # noqa: E501
        (("export", TINY, "-o", "m.mlpackage", "--attention", "fused"), "m.mlpackage cannot be built: Core ML has no operator"),  # noqa: E501
        (("export", TINY, "-o", "m.engine", "--precision", "FP16"), "'FP16' is unknown"),
        (("export", TINY, "-o", "m.onnx", "--size", "250"), "fix: Use --size 240 or --size 256."),
        (("export", TINY, "-o", "m.onnx", "--size", "250x320"), "--size 240x320 or --size 256x320."),  # noqa: E501
        (("export", TINY, "-o", "m.onnx", "--size", "5"), "fix: Use --size 16.\n"),
        (("export", TINY, "-o", "m.onnx", "--classes", "camvit"), "fix: Did you mean camvid? Class lists: ade20k,"),  # noqa: E501
        (("export", TINY, "-o", "m.onnx", "--classes", "ade20k"), "Class lists with 11 classes: camvid, tiny_scenes."),  # noqa: E501
        (("bench", "--engine", "m.onnx", "--seconds", "3"), "--seconds does not apply to --engine, only to --suite.\n  fix: Use --iterations"),  # noqa: E501
        (("bench", "--engine", "m.onnx", "--plot-waterfall", "w.png"), "only to --suite and --report"),  # noqa: E501
        (("bench", "--engine", "m.onnx", "--plot-latency", "w.jpg"), "fix: Use --plot-latency w.png."),  # noqa: E501
        (("bench", "--engine", "m.onnx", "--plot-batches", "w.png"), "--plot-batches needs --scenario offline"),  # noqa: E501
    ],
)  # fmt: skip
def test_the_fix_is_the_next_step(cli, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code == 2, err
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_that_the_task_does_not_have(cli, exported, image_path, tmp_path):
    command = ("predict", exported("semantic"), image_path, "-o", tmp_path / "o", "--conf", "0.5")
    code, _, err = cli(*command)
    assert code == 2
    assert "does not apply to a semantic model" in err
    assert "why: Each pixel gets the class with the highest score." in err
    assert "fix: Leave out --score-threshold" in err


def test_classes_that_replace_those_of_the_catalog(cli, tmp_path):
    code, _, err = cli("export", TINY, "--classes", "camvid", "-o", tmp_path / "m.onnx")
    assert code == 0
    assert "The classes of camvid replace those of the catalog, tiny_scenes." in err


def test_an_int8_model_computes_in_int8():
    assert computes_in("int8", "fp32") == "int8 and fp32"
    assert computes_in("int8", "int8") == "int8"
    assert computes_in("fp8", "fp32") == "fp32"  # a CPU converts FP8 values
    report = OpenVinoReport((), "2026.1", "int8", "fp32", None)
    assert "int8 model, computes in int8 and fp32" in list(report.lines())[1]


def test_a_declined_arithmetic_can_be_forced():
    declined = Trial("bf16", 0.9949, 1, 2.0)
    text = "\n".join(OpenVinoReport((), "1", "fp32", "fp32", declined).lines())
    assert "99.490% of the labels are equal on 1 image (minimum: 99.5%" in text
    assert "not worth it" in text
    assert "To use it anyway: --arithmetic bf16" in text
    used = "\n".join(OpenVinoReport((), "1", "fp32", "bf16", declined).lines())
    assert "anyway" not in used


def test_the_error_of_a_logit_is_a_percentage_beside_its_maximum():
    assert logit_error(0.28, 0.5) == "largest logit error 28% of the largest logit (maximum 50%)"
    assert [percent(x) for x in (0, 1e-9, 1.75e-6, 0.1234, 1)] == [
        "0%", "below 0.0001%", "0.000175%", "12.3%", "100%",
    ]  # fmt: skip


def test_the_rounds_are_named_before_they_run(cli, exported):
    words = "1 to 10 warm-up and 20 measured rounds, at most 300 s; a valid result needs at least 6"
    assert words in rounds_line(Rounds(20, 1, 10, 300), 6)
    assert rounds_line(Rounds(20, 3), 6).startswith("3 warm-up and 20 measured rounds; ")
    _, _, err = cli("bench", "--engine", exported("semantic"), "--iterations", 2, "--warmup", 0)
    assert "each row: 0 warm-up and 2 measured rounds" in err.splitlines()[0]
    assert "2 rounds are too few for a valid result; use --iterations 6 or more" in err


def test_the_server_shows_what_was_offered_and_what_was_answered():
    served = Served("m", "onnxruntime", 9.0, (1.0,) * 40, 10, 5.0)
    sheet = served_sheet([served])
    row = dict(zip(sheet.headers, sheet.rows[0], strict=True))
    assert (row["rate /s"], row["offered /s"], row["answered /s"]) == ("9.00", "10.00", "8.00")
