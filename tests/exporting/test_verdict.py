from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from PIL import Image

from eomt_deploy.errors import OutputError, UsageError, VerificationError
from eomt_deploy.evaluation.truth import VOID, Sample, Truth, unlabelled
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.conversion import _plan, _quantizable
from eomt_deploy.exporting.quantization import quantize_layers
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.exporting.verdict import Judge, Judgement, Trial, Verdict, search_blocks
from eomt_deploy.exporting.work import Work, spread
from eomt_deploy.network.folds import fold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, image_path in enumerate(tiny.images(8)):
        Image.fromarray(image_path).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def judge(folder):
    reference = NetworkEngine(tiny.network(), tiny.spec())
    return Judge(reference, unlabelled(sorted(folder.glob("*.png"))), labelled=False)


def test_the_checkpoint_agrees_with_itself(judge):
    found = judge(judge.reference)
    assert found == Judgement(8, found.error, 1.0)
    assert found.error < 1e-3  # not 0, because the reference is kept in FP16
    assert found.drop == 0


def test_nan_is_refused(judge):
    network = tiny.network()
    network.class_head.bias.fill_(float("nan"))
    with pytest.raises(VerificationError, match="NaN"):
        judge(NetworkEngine(network, tiny.spec()))


def search(drops: dict[int, float], budget: float | None) -> Verdict:
    """A search with a known result: a block in FP16 does not contribute its drop."""

    def measure(kept, limit):
        lost = sum(drop for block, drop in drops.items() if block not in kept)
        return Judgement(limit or 100, lost, 1 - lost / 100)

    def share(kept):
        return 1 - len(kept) / len(drops)

    return search_blocks(measure, list(drops), share, "label agreement", budget)


@pytest.mark.parametrize(
    ("budget", "kept"), [(None, ()), (20, ()), (9, (2,)), (4.5, (1, 2)), (0.1, (0, 1, 2, 3))]
)
def test_the_worst_blocks_are_kept_until_the_budget_is_met(budget, kept):
    verdict = search({0: 1.0, 1: 5.0, 2: 8.0, 3: 0.5}, budget)
    assert verdict.chosen.kept == kept
    assert verdict.sensitivity[2].error == 8
    if budget is not None:
        assert verdict.chosen.judgement.drop <= budget


def test_a_budget_below_what_fp16_loses_fails():
    def measure(kept, limit):
        return Judgement(4, 0.1, 0.5)

    with pytest.raises(VerificationError, match="Even with all blocks in FP16, 50"):
        search_blocks(measure, [0, 1], lambda kept: 1.0, "label agreement", 0.5)


def test_the_front_holds_what_nothing_beats():
    def trial(share, agreement):
        return Trial((), share, Judgement(4, 0.0, agreement))

    trials = (trial(1, 0.9), trial(0.5, 0.85), trial(0.25, 0.95), trial(0, 1))
    verdict = Verdict("label agreement", None, {}, trials, trials[0])
    assert [t.share for t in verdict.front] == [1, 0.25, 0]


def test_export_with_a_budget(files, folder, tmp_path, cli):
    target = tmp_path / "m.onnx"
    code, out, err = cli(
        "export", files.checkpoint, "--task", "semantic", "--classes", files.classes,
        "--precision", "int8", "--calibrate", folder, "--budget", "0.05", "-o", target,
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    verdict = report["verdict"]
    assert verdict["chosen"]["drop"] <= 0.05
    assert verdict["chosen"]["judgement"]["images"] == 2  # every fourth of eight
    assert set(verdict["sensitivity"]) == {"0", "1", "2"}
    assert "verdict:" in out
    assert json.loads((tmp_path / "m.pareto.json").read_text())["front"] == verdict["front"]
    with Image.open(tmp_path / "m.pareto.png") as picture:
        assert picture.size > (600, 400)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 5
    kept = verdict["chosen"]["kept"]
    assert report["spec"]["provenance"]["blocks_in_fp16"] == (", ".join(map(str, kept)) or "none")
    names = {n.name for n in onnx.load(target).graph.node if n.op_type == "QuantizeLinear"}
    blocks = {int(name.split(".")[2]) for name in names}
    assert blocks == set(range(tiny.ARCH.depth)) - set(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "needs calibration images"),
        ({"precision": "fp16", "budget": 0.5}, "--budget has no effect with fp16"),
        ({"precision": "fp32", "high": ("norm",)}, "--high has no effect"),
        ({"precision": "bf16", "islands": False}, "--no-islands has no effect"),
        ({"precision": "fp16", "smooth": 0.2}, "--smooth has no effect"),
        ({"precision": "fp64"}, "unknown"),
    ],
)
def test_what_does_not_apply_is_an_error(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        ExportConfig("x.bin", tmp_path / "m.onnx", **options)


def test_more_of_the_same(folder, tmp_path):
    config = {"calibrate": folder, "precision": "int8"}
    wrongs = (
        {"smooth": 2}, {"budget": -1}, {"budget": float("inf")}, {"budget": float("nan")},
        {"method": "guess"}, {"attention": "magic"},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(UsageError):
            ExportConfig("x.bin", tmp_path / "m.onnx", **config, **wrong)
    with pytest.raises(UsageError, match="Entropy"):
        ExportConfig(
            "x.bin", tmp_path / "m.onnx", calibrate=folder, precision="fp8", method="entropy"
        )


def test_something_unknown_to_keep_high(files, tmp_path):
    with pytest.raises(UsageError, match="no role or module"):
        export(
            ExportConfig(
                str(files.checkpoint),
                tmp_path / "m.onnx",
                task="semantic",
                classes=files.classes,
                precision="fp16",
                high=("mpl",),
            )
        )


def test_spread_takes_the_ends():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 4) == [1, 2]


@pytest.mark.parametrize(
    ("high", "left"),
    [
        (("backbone.blocks.0.mlp.fc1",), 10),  # and fc2, which goes with it
        (("backbone.blocks.1",), 8),
        (("mlp",), 6),
        (("mlp", "projection"), 0),
    ],
)
def test_what_is_kept_high_is_not_quantized(traced, high, left):
    config = ExportConfig("x", Path("m.onnx"), precision="int8", calibrate=Path(), high=high)
    network = fold(tiny.network())
    layers = quantize_layers(network, observe(network, [tiny.images()]), "int8", "minmax")
    model = traced()
    plan, islands = _plan(model, config, [tiny.images()], Work(lambda text, fraction: None))
    assert islands == []
    found = _quantizable(layers, model, plan)
    assert len(found) == left
    assert not [name for name in found if name.startswith(high)]


def test_with_nothing_left_to_quantize_it_is_an_fp16_model(files, folder, tmp_path):
    report = export(
        ExportConfig(
            str(files.checkpoint),
            tmp_path / "m.onnx",
            task="semantic",
            classes=files.classes,
            precision="int8",
            calibrate=folder,
            high=("mlp", "projection"),
        )
    )
    assert report.spec.precision == "fp16"
    assert report.verdict is None
    assert any("No layer is int8" in note for note in report.warnings)


def test_a_pareto_file_that_cannot_be_written_stops_the_export_before_the_work(
    files, folder, tmp_path
):
    (tmp_path / "m.pareto.json").mkdir()
    config = ExportConfig(
        str(files.checkpoint), tmp_path / "m.onnx", task="panoptic", classes=files.classes,
        precision="int8", calibrate=folder, budget=5,
    )  # fmt: skip
    with pytest.raises(OutputError, match="is a folder"):
        export(config)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pareto.json"]


def test_labels_without_content_are_no_labels():
    """Otherwise, label agreement would be reported as mIoU."""
    image = np.zeros((64, 64, 3), np.uint8)
    truth = Truth((64, 64), np.full((64, 64), VOID, np.int32))
    sample = Sample("void", lambda: image, lambda: truth)
    engine = NetworkEngine(tiny.network(), tiny.spec("semantic"))
    judge = Judge(engine, [sample], labelled=True)
    with pytest.raises(UsageError, match="no content that counts for mIoU"):
        judge(engine)
