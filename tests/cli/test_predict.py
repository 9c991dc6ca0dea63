"""What `predict` writes, keeps and refuses to touch."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import forked
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from eomt_deploy.backends import open_engine
from eomt_deploy.journal import JOURNAL_NAME
from eomt_deploy.spec import TASKS


def write_images(folder, array, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def contents(folder):
    """Every file with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}  # noqa: E501  # fmt: skip


@pytest.fixture
def dataset(tmp_path, gradient):
    """Images and ground truth in the layout that `eval` reads."""
    write_images(tmp_path / "ds/images", gradient, "a.png", "b.png")
    write_images(tmp_path / "ds/labels", gradient[:, :, 0] % 5, "a.png", "b.png")
    return tmp_path / "ds"


def test_an_image_on_standard_input(cli, exported, image_path, tmp_path, monkeypatch):
    target = tmp_path / "seen.png"
    with image_path.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        code, out, err = cli("predict", exported("panoptic"), "-", "-o", target)
    assert code == 0, err
    assert f"wrote {target}: Segmentation(panoptic, 400x600" in out
    assert Image.open(target).size[0] >= 600
    code, _, err = cli("predict", exported("panoptic"), "-", "-o", tmp_path / "folder")
    assert code == 2
    assert "needs an output file" in err
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"text")))
    code, _, err = cli("predict", exported("panoptic"), "-", "-o", tmp_path / "x.json")
    assert code == 2
    assert "is not an image" in err
    assert not (tmp_path / "x.json").exists()


def test_only_some_classes(cli, exported, image_path, tmp_path):
    model, folder = exported("panoptic"), tmp_path / "out"
    names = [c.name for c in open_engine(model).spec.classes]
    chosen = f"{names[1]}, 3"
    for option in ("--conf", "--score-threshold"):
        code, _, err = cli(
            "predict", model, image_path, "-o", folder, option, "0.0", "--classes-only", chosen
        )
        assert code == 0, err
    content = json.loads((folder / "predictions.json").read_text())
    (annotation,) = content["annotations"]
    found = {segment["category_id"] for segment in annotation["segments_info"]}
    ids = {c["name"]: c["id"] for c in content["categories"]}
    assert found <= {ids[names[1]], ids[names[3]]}
    code, _, err = cli("predict", model, image_path, "-o", folder, "--resume", "--conf", "0.0")
    assert code == 2  # the results there are of other settings
    code, _, err = cli("predict", model, image_path, "-o", folder, "--classes-only", "zebra")
    assert code == 2
    assert "has no class 'zebra'" in err
    code, _, err = cli("predict", model, image_path, "-o", folder, "--classes-only", " , ")
    assert "needs the name of a class" in err


def test_short_help(cli):
    for command in ((), ("predict",), ("cache",), ("cache", "show")):
        code, out, _ = cli(*command, "-h")
        assert code == 0
        assert out.startswith("Usage: ")


def test_ground_truth_is_not_replaced(cli, exported, dataset):
    before = contents(dataset)
    for source in (dataset / "images", dataset):
        code, _, err = cli("predict", exported("semantic"), source, "-o", dataset)
        assert code == 2
        assert "contains 2 files that eomt-deploy did not write" in err
        assert "fix: Choose another output folder" in err
        assert contents(dataset) == before


def test_labels_beside_new_names_are_not_mixed_with_results(cli, exported, dataset, gradient):
    write_images(dataset / "more", gradient, "c.png")
    before = contents(dataset)
    assert cli("predict", exported("semantic"), dataset / "more", "-o", dataset)[0] == 2
    assert contents(dataset) == before


def test_overwrite_replaces_what_the_user_named_and_nothing_else(cli, exported, dataset):
    (dataset / "labels/c.png").write_bytes(b"not ours")
    images = contents(dataset / "images")
    code, _, err = cli(
        "predict", exported("semantic"), dataset / "images", "-o", dataset, "--overwrite"
    )
    assert code == 0, err
    assert (dataset / "labels/c.png").read_bytes() == b"not ours"
    assert contents(dataset / "images") == images
    assert np.asarray(Image.open(dataset / "labels/a.png")).shape == (37, 53)


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_the_image_is_not_replaced_by_its_result(cli, exported, picture, tmp_path, options):
    jpeg = tmp_path / "a.jpg"
    Image.open(picture).save(jpeg)
    before = contents(tmp_path)
    model = exported("semantic")
    for arguments in (
        (jpeg, "-o", jpeg),
        (picture, "-o", picture),
        (jpeg, "-o", tmp_path / "o", "--json", jpeg),
        (jpeg, "-o", tmp_path / "o", "--json", model),
    ):
        code, _, err = cli("predict", model, *arguments, *options)
        assert code == 2
        assert "is an input of this command" in err
        assert contents(tmp_path) == before


def test_a_single_file_of_somebody_else_is_not_replaced(cli, exported, picture, tmp_path):
    target = tmp_path / "seen.png"
    target.write_bytes(picture.read_bytes())
    assert cli("predict", exported("semantic"), picture, "-o", target)[0] == 2
    assert target.read_bytes() == picture.read_bytes()
    assert cli("predict", exported("semantic"), picture, "-o", target, "--overwrite")[0] == 0
    assert cli("predict", exported("semantic"), picture, "-o", target)[0] == 0  # ours by now


def test_a_second_run_leaves_no_stale_results(cli, exported, gradient, tmp_path):
    write_images(tmp_path / "in", gradient, "a.png", "sub/b.png")
    out = tmp_path / "out"
    assert cli("predict", exported("panoptic"), tmp_path / "in", "-o", out)[0] == 0
    (tmp_path / "in/sub/b.png").unlink()
    code, _, err = cli("predict", exported("panoptic"), tmp_path / "in", "-o", out)
    assert code == 0
    assert "replacing 5 files of an earlier run" in err
    assert set(contents(out)) == {
        "overlay/a.jpg", "labels/a.png", "predictions.json", JOURNAL_NAME,
    }  # fmt: skip
    (out / "labels/a.png").write_bytes(b"corrected by hand")
    code, _, err = cli("predict", exported("panoptic"), tmp_path / "in", "-o", out)
    assert code == 2
    assert "changed since" in err
    assert (out / "labels/a.png").read_bytes() == b"corrected by hand"


@pytest.mark.parametrize("task", TASKS)
def test_predictions_json_is_coco(cli, exported, image_path, picture, tmp_path, task):
    out = tmp_path / "out"
    other = tmp_path / "copy.json"
    code, _, _ = cli("predict", exported(task), image_path, picture, "-o", out, "--json", other)
    assert code == 0
    assert json.loads(other.read_text()) == json.loads((out / "predictions.json").read_text())
    if task == "panoptic":  # pycocotools reads no panoptic files, not even COCO's own
        document = json.loads(other.read_text())
        assert [i["id"] for i in document["images"]] == [1, 2]
        for entry in document["annotations"]:
            ids = np.asarray(Image.open(out / "labels" / entry["file_name"])).astype(int)
            areas = dict(zip(*np.unique(ids @ [1, 256, 65536], return_counts=True), strict=True))
            areas.pop(0, None)
            assert {s["id"]: s["area"] for s in entry["segments_info"]} == areas
        return
    coco = COCO(out / "predictions.json")
    assert sorted(coco.imgs) == [1, 2]
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} >= {"sky", "cat"}
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotations
    for entry in annotations:
        assert coco.annToMask(entry).sum() == entry["area"]
    assert len(coco.anns) == len(json.loads(other.read_text())["annotations"])


def test_resume_does_only_what_is_left(cli, exported, gradient, picture, tmp_path):
    folder, out, model = tmp_path / "in", tmp_path / "out", exported("semantic")
    write_images(folder, gradient, *(f"{i}.png" for i in range(4)))
    (folder / "2.png").write_bytes(b"damaged")
    assert cli("predict", model, folder, "-o", out, "--resume")[0] == 2  # nothing to keep: all done
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    write_images(folder, gradient, "2.png", "3.png")  # repaired, and changed
    code, text, err = cli("predict", model, folder, "-o", out, "--resume")
    assert code == 0, err
    assert "keeping the results of 2 images, 2 left" in err
    assert "wrote 2 of 2 results (and kept 2)" in text
    for path, time_ns in times.items():
        assert (path.stat().st_mtime_ns == time_ns) == (path.stem in "01")
    summary = json.loads((out / "predictions.json").read_text())
    assert sorted(i["overlay"] for i in summary["images"]) == [f"overlay/{i}.jpg" for i in range(4)]
    code, _, err = cli("predict", exported("panoptic"), folder, "-o", out, "--resume")
    assert code == 2
    assert "contains results of a run with other settings" in err


def test_options_of_a_folder_with_a_file(cli, exported, picture, tmp_path):
    code, _, err = cli(
        "predict", exported("semantic"), picture, "-o", tmp_path / "x.png", "--resume"
    )
    assert code == 2
    assert "--resume needs an output folder" in err


def test_an_overlay_too_long_for_jpeg(cli, exported, gradient, tmp_path):
    write_images(tmp_path / "in", gradient, "a.png", "z.png")
    write_images(tmp_path / "in", np.zeros((520, 66_000, 3), np.uint8), "panorama.png")
    code, out, err = cli("predict", exported("panoptic"), tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0, err
    assert "wrote 3 of 3" in out
    assert "66000x520 pixels, more than the JPEG maximum of 65500" in err
    with Image.open(tmp_path / "out/overlay/panorama.png") as overlay:
        assert overlay.size == (66_000, 520)


def test_a_name_that_the_system_refuses_costs_only_its_own_result(
    cli, exported, gradient, tmp_path
):
    write_images(tmp_path / "in", gradient, "a.png", "x" * 251 + ".png", "x" * 251 + ".bmp")
    code, out, err = cli("predict", exported("semantic"), tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert "wrote 1 of 3" in out
    assert err.count("name too long") == 2
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["images"]) == 1


def wait_for_results(process, out, count):
    deadline = time.monotonic() + 120
    while len(list((out / "labels").glob("*.png"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


ANNOUNCED = """
import runpy, signal
real = signal.signal

def announce(*arguments):
    signal.signal = real
    real(*arguments)
    print("started", flush=True)

signal.signal = announce
runpy.run_module("eomt_deploy", run_name="__main__", alter_sys=True)
"""
"""The command, which prints a line after its first one: an interrupt before that, while Python
itself starts, is shown by Python."""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_stopped_run_keeps_its_results_and_goes_on(exported, gradient, tmp_path, name):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_images(folder, gradient, *(f"{i:04}.png" for i in range(60)))
    process = forked.start(["predict", exported("panoptic"), folder, "-o", out])
    wait_for_results(process, out, 5)
    number = getattr(signal, name)
    process.send_signal(number)
    text, err = process.communicate(timeout=60)
    assert "Traceback" not in text + err
    if name == "SIGKILL":
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert f"stopped by {name}" in err
        assert "of 60 images are done" in err
        assert "--resume" in err
        summary = json.loads((out / "predictions.json").read_text())
        assert 5 <= len(summary["images"]) < 60
        assert len(summary["images"]) == len(list((out / "labels").glob("*.png")))
    process = forked.start(["predict", exported("panoptic"), folder, "-o", out, "--resume"])
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "keeping the results of" in err
    summary = json.loads((out / "predictions.json").read_text())
    assert len({entry["file_name"] for entry in summary["images"]}) == 60
    assert len(list((out / "overlay").glob("*.jpg"))) == 60
    assert not [p for p in out.rglob(".eomt-deploy-*") if p.name != JOURNAL_NAME]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("seconds", [0, 0.01, 0.05, 0.2])
def test_ctrl_c_while_the_command_exits_shows_no_traceback(exported, picture, tmp_path, seconds):
    process = forked.start(["predict", exported("semantic"), picture, "-o", tmp_path / "out"])
    assert process.stdout.readline().startswith("wrote 1 of 1")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    text, err = process.communicate(timeout=60)
    assert "Traceback" not in text + err
    assert "KeyboardInterrupt" not in text + err
    assert (tmp_path / "out/predictions.json").is_file()


def test_the_first_line_of_the_command_comes_before_its_imports():
    code = (
        "import sys, eomt_deploy.cli\n"
        "assert not {'typer', 'numpy', 'eomt_deploy.cli.app'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("seconds", [0, 0.1, 0.2, 0.4, 0.8])
def test_ctrl_c_at_any_time_shows_no_traceback(exported, picture, tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCED, "predict", exported("semantic"), picture, "-o",
         tmp_path / "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    text, err = process.communicate(timeout=60)
    assert process.returncode in (0, 128 + signal.SIGINT, -signal.SIGINT)
    assert "Traceback" not in text + err
    assert "KeyboardInterrupt" not in text + err


def test_options_of_overlays(cli, exported, image_path, tmp_path):
    model = exported("semantic")

    def drawn(name, *options):
        code, _, err = cli("predict", model, image_path, "-o", tmp_path / name, *options)
        assert code == 0, err
        return np.asarray(Image.open(tmp_path / name))

    photo = np.asarray(Image.open(image_path))
    plain = drawn("plain.png")
    assert plain.shape == photo.shape
    nothing = ("--no-masks", "--no-outlines", "--no-labels")
    assert (drawn("nothing.png", *nothing) == photo).all()
    assert (drawn("alpha.png", "--alpha", "0", *nothing[1:]) == photo).all()
    assert drawn("legend.png", "--legend").shape[1] > photo.shape[1]
    different = [
        drawn(f"{number}.png", *options)
        for number, options in enumerate(
            [("--palette", "okabe-ito"), ("--font-scale", "2"), ("--alpha", "0.9")]
        )
    ]
    assert all((picture != plain).any() for picture in different)
    code, _, err = cli(
        "predict", model, image_path, "-o", tmp_path / "x.png", "--palette", "rainbow"
    )
    assert code == 2
    assert "There is no palette 'rainbow'" in err
    code, _, err = cli("predict", model, image_path, "-o", tmp_path / "out", "--legend")
    assert code == 0, err
    (picture,) = (tmp_path / "out/overlay").iterdir()
    assert Image.open(picture).width > photo.shape[1]
