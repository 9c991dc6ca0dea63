from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.errors import DatasetError, ImageError, UsageError, VerificationError
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.evaluation.compare import compare, paired_difference
from eomt_deploy.evaluation.evaluate import file_sha256
from eomt_deploy.evaluation.scorers import scorer_for
from eomt_deploy.evaluation.truth import unlabelled
from eomt_deploy.exporting.reference import TorchEngine
from eomt_deploy.spec import TASKS


@pytest.fixture
def opened(tmp_path, exported):
    root = made_up.coco_panoptic(tmp_path / "data")

    def get(task):
        segmenter = Segmenter(exported(task))
        return segmenter, open_dataset([root], segmenter.spec)

    return get


@pytest.mark.parametrize("task", TASKS)
def test_report(opened, task):
    updates = []
    report = evaluate(*opened(task), progress=lambda done, score: updates.append((done, score)))
    data = json.loads(json.dumps(report.to_dict()))
    main = {"semantic": "mIoU", "instance": "AP", "panoptic": "PQ"}[task]
    assert 0 <= data[main] <= 100
    assert data["images"] == 3
    assert len(data["model"]["sha256"]) == 64
    assert [row["image"] for row in data["per_image"]] == [
        "images/0.jpg",
        "images/1.jpg",
        "images/2.jpg",
    ]
    assert [done for done, _ in updates] == [0, 1, 2, 3]
    assert updates[-1][1].startswith(main)
    assert len(report.worst(2)) <= 2


def test_a_model_scores_full_marks_on_its_own_results(tmp_path, exported):
    """Labels from the model's own predictions, so that all predictions are right."""
    root = made_up.label_folder(tmp_path / "data")
    with Segmenter(exported("semantic")) as segmenter:
        for path in (root / "images").iterdir():
            segmenter.predict(path).label_image().save(root / f"labels/{path.stem}.png")
        report = evaluate(segmenter, open_dataset([root], segmenter.spec))
        assert report.scores.value == 100
        for path in (root / "labels").iterdir():
            shuffled = (np.asarray(Image.open(path)) + 1) % 5
            Image.fromarray(shuffled.astype(np.uint8)).save(path)
        assert evaluate(segmenter, open_dataset([root], segmenter.spec)).scores.value < 1


def test_stopped_evaluation_goes_on(opened, tmp_path, monkeypatch):
    segmenter, dataset = opened("panoptic")
    complete = evaluate(segmenter, dataset)
    log = tmp_path / "log.jsonl"
    real = segmenter.engine.run
    runs = []

    def run_twice(images):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(1)
        return real(images)

    monkeypatch.setattr(segmenter.engine, "run", run_twice)
    with pytest.raises(KeyboardInterrupt):
        evaluate(segmenter, dataset, resume=log)
    assert len(log.read_text().splitlines()) == 3
    with log.open("a") as file:
        file.write('{"half a li')  # interrupted while writing
    monkeypatch.setattr(segmenter.engine, "run", lambda i: runs.append(1) or real(i))
    resumed = evaluate(segmenter, dataset, resume=log)
    assert len(runs) == 3  # two before the interruption, one after
    assert resumed.to_dict() == complete.to_dict()
    assert evaluate(segmenter, dataset, resume=log).to_dict() == complete.to_dict()
    assert len(runs) == 3


def test_log_of_another_evaluation(opened, tmp_path):
    segmenter, dataset = opened("panoptic")
    log = tmp_path / "log.jsonl"
    evaluate(segmenter, dataset, limit=1, resume=log)
    before = log.read_text()
    with pytest.raises(UsageError, match="another evaluation"):
        evaluate(segmenter, dataset, limit=2, resume=log)
    assert log.read_text() == before
    for content in ("something else\n", before.replace("images/0.jpg", "images/9.jpg")):
        log.write_text(content)
        with pytest.raises(UsageError, match=r"--resume|damaged"):
            evaluate(segmenter, dataset, limit=1, resume=log)
        assert log.read_text() == content
    log.write_text(before + "null\n")  # additional lines are ignored
    evaluate(segmenter, dataset, limit=1, resume=log)
    log.write_text("")
    evaluate(segmenter, dataset, limit=1, resume=log)
    assert log.read_text() == before


def test_resume_notices_that_the_data_changed(tmp_path, exported):
    root = made_up.label_folder(tmp_path / "data")
    log = tmp_path / "log.jsonl"
    with Segmenter(exported("semantic")) as segmenter:
        evaluate(segmenter, open_dataset([root], segmenter.spec), resume=log)
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(root / "labels/1.png")
        with pytest.raises(UsageError, match="another evaluation"):
            evaluate(segmenter, open_dataset([root], segmenter.spec), resume=log)


def test_model_that_gives_nan_is_not_scored(opened, monkeypatch):
    segmenter, dataset = opened("panoptic")
    real = segmenter.engine.run

    def broken(images):
        class_logits, mask_logits = real(images)
        mask_logits[0, 0, 0, 0] = np.nan
        return class_logits, mask_logits

    monkeypatch.setattr(segmenter.engine, "run", broken)
    with pytest.raises(VerificationError, match=r"NaN or infinite logits on images/0\.jpg"):
        evaluate(segmenter, dataset)
    with pytest.raises(VerificationError, match=r"NaN or infinite logits on images/0\.jpg"):
        compare(segmenter, segmenter, dataset.samples, labelled=False)


def test_data_without_any_label_that_counts(tmp_path, exported):
    root = made_up.label_folder(tmp_path / "data", count=1)
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(root / "labels/0.png")
    segmenter = Segmenter(exported("semantic"))
    with pytest.raises(DatasetError, match=r"Nothing in .* could be scored"):
        evaluate(segmenter, open_dataset([root], segmenter.spec))


def test_one_image_has_no_interval(opened):
    segmenter, dataset = opened("semantic")
    result = compare(segmenter, segmenter, dataset.samples[:1], labelled=True)
    assert result.labelled.low is None
    assert result.labelled.difference == 0


def test_labels_of_another_size(tmp_path, exported):
    root = made_up.label_folder(tmp_path / "data")
    made_up.random_image(0, (30, 60)).save(root / "images/1.jpg")
    segmenter = Segmenter(exported("semantic"))
    with pytest.raises(DatasetError, match=r"1\.jpg is 30x60, its labels are 40x60"):
        evaluate(segmenter, open_dataset([root], segmenter.spec))
    with pytest.raises(UsageError, match="--limit must be at least 1, got 0"):
        evaluate(segmenter, open_dataset([root], segmenter.spec), limit=0)


@pytest.mark.parametrize("task", TASKS)
def test_model_file_against_its_checkpoint(opened, files, task):
    segmenter, dataset = opened(task)
    reference = Segmenter(TorchEngine(files.checkpoint, segmenter.spec))
    result = compare(segmenter, reference, dataset.samples, labelled=True)
    assert result.logit_max < 1e-4
    assert result.label_agreement > 0.999
    assert result.mask_iou is None if task == "panoptic" else result.mask_iou > 0.99
    assert result.labelled.low <= result.labelled.difference <= result.labelled.high
    assert abs(result.labelled.difference) < 0.5
    # The random panoptic model predicts no segment, so there is no score.
    assert result.score is None if task == "panoptic" else result.score >= 99.5


def test_images_without_labels(image_path):
    sample = unlabelled([image_path])[0]
    assert sample.image().shape == (400, 600, 3)
    with pytest.raises(UsageError, match="no labels"):
        sample.truth()


def test_models_that_cannot_be_compared(opened):
    (a, dataset), (b, _) = opened("panoptic"), opened("semantic")
    with pytest.raises(UsageError, match="cannot be compared"):
        compare(a, b, dataset.samples, labelled=False)
    with pytest.raises(UsageError, match="no images"):
        compare(a, a, [], labelled=False)


def test_paired_interval_detects_only_a_real_difference(opened):
    segmenter, _ = opened("semantic")
    scorer = scorer_for(segmenter.spec)
    rng = np.random.default_rng(0)
    good = [{"confusion": [[0, 0, 900 + int(n)], [0, 1, 100]]} for n in rng.integers(0, 90, 30)]
    worse = [{"confusion": [[0, 0, c["confusion"][0][2] - 150], [0, 1, 250]]} for c in good]
    same = paired_difference(scorer, good, good, 100)
    assert same.low <= 0 <= same.high
    other = paired_difference(scorer, good, worse, 100)
    assert other.high < 0
    assert other.low <= other.difference <= other.high


def test_command_line(cli, tmp_path, exported, files):
    root = made_up.coco_panoptic(tmp_path / "data")
    model = exported("panoptic")
    target, worst = tmp_path / "e.json", tmp_path / "worst"
    code, out, _ = cli("eval", model, "--data", root, "--json", target, "--worst", worst)
    assert code == 0
    assert "PQ_things" in out
    assert json.loads(target.read_text())["task"] == "panoptic"
    assert len(list(worst.glob("*.jpg"))) == 3
    (worst / "mine.jpg").write_bytes(b"mine")
    assert cli("eval", model, "--data", root, "--worst", worst)[0] == 2  # not our file
    for option in ("--json", "--resume"):
        truth = (root / "panoptic.json").read_bytes()
        assert cli("eval", model, "--data", root, option, root / "panoptic.json")[0] == 2
        assert (root / "panoptic.json").read_bytes() == truth
    code, _, err = cli("eval", model, "--data", tmp_path / "none")
    assert code == 2
    assert "does not exist" in err

    picture = tmp_path / "differs.png"
    code, out, _ = cli("compare", model, files.checkpoint, root / "images", "-o", picture,
                       "--tolerance", 0.1)  # fmt: skip
    assert code == 0
    assert "label agreement" in out
    assert picture.is_file()
    code, out, _ = cli("compare", model, files.checkpoint, "--data", root)
    assert code == 0
    assert "95% interval" in out
    assert cli("compare", model, model)[0] == 2
    for wrong in (("--limit", -1), ("--tolerance", "nan"), ("--split", "val")):
        assert cli("compare", model, model, root / "images", *wrong)[0] == 2
    image_path = root / "images/0.jpg"
    assert cli("compare", model, model, image_path, "-o", image_path)[0] == 2
    assert cli("compare", files.checkpoint, files.checkpoint, root / "images")[0] == 2


def test_compare_goes_on_without_an_unreadable_image(cli, tmp_path, exported):
    root = made_up.coco_panoptic(tmp_path / "data")
    model = exported("semantic")
    (root / "images/0.jpg").write_bytes(b"broken")
    (root / "images/notes.txt").write_bytes(b"")
    target, picture = tmp_path / "c.json", tmp_path / "c.png"
    code, out, err = cli("compare", model, model, root / "images", "--json", target, "-o", picture)
    assert code == 2
    assert "on 2 images" in out
    assert "0.jpg is not an image" in err
    assert "1 of 3 images could not be read" in err
    assert "left out 1 file: 1 .txt" in err
    assert json.loads(target.read_text())["images"] == 2
    assert picture.is_file()
    segmenter = Segmenter(model)
    with pytest.raises(ImageError, match=r"0\.jpg is not an image"):
        compare(segmenter, segmenter, unlabelled([root / "images/0.jpg"]), labelled=False)
    dataset = open_dataset([root], segmenter.spec)
    with pytest.raises(DatasetError, match=r"0\.jpg is not an image"):
        compare(segmenter, segmenter, dataset.samples, labelled=True)
    code, _, err = cli("eval", model, "--data", root, "--max-pixels", 100)
    assert code == 2
    assert "limit of 100" in err


def test_compare_beyond_the_tolerance_exits_with_4(cli, tmp_path, exported, files):
    import tiny
    import torch

    other = tmp_path / "other.bin"
    torch.save(tiny.official_keys(tiny.network(seed=1)), other)
    root = made_up.coco_panoptic(tmp_path / "data")
    code, _, err = cli("compare", exported("panoptic"), other, root / "images", "--tolerance", 1)
    assert code == 4
    assert "1% is allowed" in err


def test_objects_that_melt_into_one_are_a_difference():
    """Merged objects change masks, but not the class of any pixel."""
    from eomt_deploy.cli.compare import _check
    from eomt_deploy.evaluation.compare import Comparison

    merged = Comparison(1, 0.0, 0.0, 1.0, 0.5, None, "PQ", None, ())
    with pytest.raises(VerificationError, match=r"50\.000% of the masks"):
        _check(merged, 1.0, Path("a.onnx"), Path("b.onnx"))
    _check(replace(merged, mask_iou=0.995), 1.0, Path("a.onnx"), Path("b.onnx"))


def test_hash_covers_the_side_file_with_the_weights(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    alone = file_sha256(model)
    assert alone == hashlib.sha256(b"graph").hexdigest()
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    assert file_sha256(model) != alone


def test_worst_pictures_use_the_thresholds_of_the_run(cli, tmp_path, exported):
    root = made_up.coco_panoptic(tmp_path / "data")
    pictures = []
    for score in (0.0, 1.0):
        folder = tmp_path / f"worst-{score}"
        options = ("--score-threshold", score, "--overlap-threshold", 0, "--worst", folder)
        assert cli("eval", exported("panoptic"), "--data", root, *options)[0] == 0
        pictures.append(sorted(p.read_bytes() for p in folder.glob("*.jpg")))
    assert pictures[0] != pictures[1]
