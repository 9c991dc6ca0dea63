"""Every command leaves a user's files alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eomt_deploy.model_file import read_onnx_metadata


@pytest.fixture
def data(tmp_path, gradient):
    """A small labelled data set, read by `eval --format folder`."""
    for kind, array in (("images", gradient), ("labels", gradient[:, :, 0] % 5)):
        (tmp_path / "ds" / kind).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.fromarray(array).save(tmp_path / "ds" / kind / name)
    return tmp_path / "ds"


def test_eval_resume_never_empties_a_file(cli, exported, data, tmp_path):
    """Once, any file without a newline was replaced by the log."""
    notes = tmp_path / "notes.txt"
    for content in (b"no newline", b"a line\n", b"\xff\xfe", json.dumps({"schema": 1}).encode()):
        notes.write_bytes(content)
        code, _, err = cli("eval", exported("semantic"), "--data", data, "--resume", notes)
        assert code == 2
        assert "fix: Choose another file for --resume" in err
        assert notes.read_bytes() == content
    for target in (exported("semantic"), data / "labels/a.png"):
        before = target.read_bytes()
        assert cli("eval", exported("semantic"), "--data", data, "--resume", target)[0] == 2
        assert target.read_bytes() == before


def test_eval_reports_and_worst_images(cli, exported, data, tmp_path):
    worst, report = tmp_path / "worst", tmp_path / "report.json"
    command = ("eval", exported("semantic"), "--data", data, "--worst", worst, "--json", report)
    for _ in range(2):  # the second time it replaces its own
        assert cli(*command)[0] == 0
        assert len(list(worst.glob("*.jpg"))) == 2
    (worst / "mine.jpg").write_bytes(b"mine")
    code, _, err = cli(*command)
    assert code == 2
    assert "mine.jpg" in err
    report.write_text('{"mine": 1}')
    code, _, err = cli(*command[:-4], "--json", report)
    assert code == 2
    assert "report.json, which eomt-deploy did not write" in err
    assert cli(*command, "--overwrite")[0] == 0
    assert (worst / "mine.jpg").read_bytes() == b"mine"


def test_compare_and_bench(cli, exported, picture, tmp_path):
    model = exported("semantic")
    target = tmp_path / "mine.json"
    target.write_text("{}")
    compare = ("compare", model, model, picture, "--json", target)
    bench = ("bench", "--engine", model, "--iterations", 2, "--warmup", 0, "--json", target)
    for command in (compare, bench):
        code, _, err = cli(*command)
        assert code == 2
        assert "did not write" in err
        assert target.read_text() == "{}"
        code, _, err = cli(*command, "--overwrite")
        assert code == 0, err
        assert json.loads(target.read_text())["generator"].startswith("eomt-deploy ")
        assert cli(*command)[0] == 0
        target.write_text("{}")
    code, _, err = cli("compare", model, model, picture, "-o", picture, "--overwrite")
    assert code == 2
    assert "is an input" in err


def test_bench_report_folder(cli, tmp_path):
    counts = tmp_path / "counts.json"
    tiny = ("--rows", "step 5", "--size", "64", "--backbone", "tiny")
    assert cli("bench", "--suite", "table1", "--count-only", *tiny, "--json", counts)[0] == 0
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("# mine\n")
    code, _, err = cli("bench", "--report", counts, "--report-dir", folder)
    assert code == 2
    assert "report.md, which eomt-deploy did not write" in err


def export(cli, files, output, *options):
    return cli(
        "export", files.checkpoint, "--task", "semantic", "--classes", files.classes,
        "-o", output, *options,
    )  # fmt: skip


def test_export_keeps_a_link_and_replaces_only_models_of_ours(cli, files, tmp_path):
    store, link = tmp_path / "store", tmp_path / "link.onnx"
    store.mkdir()
    link.symlink_to(store / "real.onnx")
    for _ in range(2):  # to a file that is not there yet, and to our own
        assert export(cli, files, link)[0] == 0
        assert link.is_symlink()
        assert read_onnx_metadata(store / "real.onnx")
    (store / "real.onnx").write_bytes(b"another tool's model")
    code, _, err = export(cli, files, link)
    assert code == 2
    assert "did not write" in err
    assert (store / "real.onnx").read_bytes() == b"another tool's model"


def test_export_does_not_remove_weights_of_another_model(cli, files, tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    code, _, err = export(cli, files, tmp_path / "m.onnx")
    assert code == 2
    assert "m.onnx.data, which eomt-deploy did not write" in err
    assert (tmp_path / "m.onnx.data").read_bytes() == b"weights"


def test_openvino_build_does_not_replace_a_checkpoint(cli, exported, tmp_path):
    """OpenVINO keeps its weights in a .bin, as PyTorch's hub models do."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    before = (tmp_path / "pytorch_model.bin").read_bytes()
    code, _, err = cli("build", exported("semantic"), "-o", tmp_path / "pytorch_model.xml")
    assert code == 2
    assert "pytorch_model.bin, which eomt-deploy did not write" in err
    assert (tmp_path / "pytorch_model.bin").read_bytes() == before


def test_openvino_build_keeps_a_link(cli, exported, picture, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "m.xml").symlink_to(tmp_path / "store/real.xml")
    for _ in range(2):
        assert cli("build", exported("semantic"), "-o", tmp_path / "m.xml")[0] == 0
        assert (tmp_path / "m.xml").is_symlink()
    code, _, err = cli("predict", tmp_path / "m.xml", picture, "-o", tmp_path / "out")
    assert code == 0, err


def test_results_of_the_api_are_known_to_the_command(cli, exported, picture, tmp_path):
    from eomt_deploy import Segmenter

    target = tmp_path / "seen.npz"
    with Segmenter(exported("panoptic")) as segmenter:
        segmenter.predict(picture).save(target)
    assert cli("predict", exported("panoptic"), picture, "-o", target)[0] == 0
    assert "segment_map" in np.load(target)
