from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import forked
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import eomt_deploy
from eomt_deploy import catalog


def test_version_and_help(cli):
    assert cli("--version")[1].strip() == f"eomt-deploy {eomt_deploy.__version__}"
    done = subprocess.run(
        [sys.executable, "-m", "eomt_deploy", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("list", "export", "inspect", "predict", "bench", "doctor"):
        assert verb in done.stdout


def test_the_end_of_a_command_does_not_examine_all_objects():
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        "sys.argv[1:] = ['--version']\n"
        "from eomt_deploy.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["True"]


def test_list(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert "coco-panoptic-eomt-large-640" in out
    code, out, _ = cli("list", "--task", "instance", "--json")
    names = [entry["name"] for entry in json.loads(out)]
    assert names
    assert names == [n for n, e in catalog.checkpoints().items() if e.task == "instance"]


def test_export_inspect_predict_bench(cli, files, tmp_path, image_path, picture):
    model, report = tmp_path / "m.onnx", tmp_path / "report.json"
    code, out, _ = cli(
        "export", files.checkpoint, "--task", "panoptic", "--size", "48x96",
        "--classes", files.classes, "-o", model, "--json", report,
    )  # fmt: skip
    assert code == 0
    assert "verified against PyTorch" in out
    assert json.loads(report.read_text())["verification"]["mask_agreement"] > 0.999

    code, out, _ = cli("inspect", model)
    assert code == 0
    assert "48x96" in out
    assert "cat*" in out
    assert json.loads(cli("inspect", model, "--json")[1])["spec"]["task"] == "panoptic"

    folder = tmp_path / "out"
    code, out, _ = cli("predict", model, image_path, picture.parent / "*.png", "-o", folder)
    assert code == 0
    assert "wrote 2 of 2" in out
    summary = json.loads((folder / "predictions.json").read_text())
    assert [entry["width"] for entry in summary["images"]] == [600, 53]
    for entry, annotation in zip(summary["images"], summary["annotations"], strict=True):
        with Image.open(folder / entry["overlay"]) as image:
            image.verify()
        assert annotation["image_id"] == entry["id"]
        ids = np.asarray(Image.open(folder / "labels" / annotation["file_name"]))
        ids = ids.astype(int) @ [1, 256, 65536]
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}

    data = tmp_path / "bench.json"
    code, out, _ = cli("bench", "--engine", model, "--iterations", 2, "--warmup", 0, "--json", data)
    assert code == 0
    assert "end-to-end" in out
    assert json.loads(data.read_text())["rows"][2]["stage"] == "network"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".json", ".npz"])
def test_predict_to_one_file(cli, exported, image_path, tmp_path, suffix):
    target = tmp_path / f"seen{suffix}"
    assert cli("predict", exported("semantic"), image_path, "-o", target)[0] == 0
    assert target.stat().st_size > 100


def test_weights_of_a_catalog_entry(cli, tmp_path):
    weights = catalog.find_checkpoint("eomt-tiny-scenes").source
    command = ["export", "eomt-tiny-scenes", "--weights", weights, "-o", str(tmp_path / "m.onnx")]
    code, _, err = cli(*command, "--name", "x")
    assert code == 2
    assert "--weights and --name" in err
    code, _, err = cli("export", weights, *command[2:])
    assert code == 2
    assert "must be a catalog name" in err
    code, _, err = cli(*command[:3], "", *command[4:])
    assert code == 2
    assert "--weights is empty" in err
    code, _, err = cli(*command[:3], "no.bin", *command[4:])
    assert code == 2
    assert "no checkpoint at no.bin" in err
    code, out, _ = cli(*command)
    assert code == 0
    assert "panoptic, 11 classes, 160x160" in out


def test_compare_takes_what_export_takes(cli, exported, image_path, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, word in (
        ("https://host/w.pt", "https://host/w.pt is not in the cache"),
        ("coco-panoptic-eomt-tiny-640-lightly", "amazonaws.com/dinov3_vitt16"),
        ("hf://nobody/none", "hf://nobody/none cannot be downloaded"),
    ):
        code, _, err = cli("compare", exported("panoptic"), name, image_path)
        assert code == 2
        assert word in err


def test_predict_goes_on_after_a_bad_image_and_fails_in_the_end(
    cli, exported, image_path, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    folder = tmp_path / "out"
    code, out, err = cli("predict", exported("instance"), bad, image_path, "-o", folder)
    assert code == 2
    assert "wrote 1 of 2" in out
    assert "bad.jpg is not an image" in err
    assert "1 of 2 images without a result" in err
    assert len(json.loads((folder / "predictions.json").read_text())["images"]) == 1


def test_predict_keeps_same_names_apart(cli, exported, gradient, tmp_path):
    for name in ("a/x.png", "a/x.bmp", "b/x.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient).save(path)
    folder = tmp_path / "out"
    assert cli("predict", exported("semantic"), tmp_path / "in", "-o", folder)[0] == 0
    labels = sorted(p.relative_to(folder / "labels").as_posix() for p in folder.rglob("labels/**/*.png"))  # noqa: E501  # fmt: skip
    assert labels == ["a/x.bmp.png", "a/x.png.png", "b/x.png"]


def test_json_on_stdout_is_only_json(cli, exported, image_path, tmp_path):
    model = exported("semantic")
    out = cli("predict", model, image_path, "-o", tmp_path / "out", "--json", "-")[1]
    assert json.loads(out)["info"]["task"] == "semantic"
    out = cli("bench", "--engine", model, "--iterations", 2, "--warmup", 0, "--json", "-")[1]
    assert json.loads(out)["schema"] == 1


def test_doctor(cli):
    code, out, _ = cli("doctor")
    assert code == 0
    assert "onnxruntime on cpu" in out
    data = json.loads(cli("doctor", "--json")[1])
    works = {a["name"]: a["works"] for a in data["abilities"]}
    assert works["run .onnx with onnxruntime on cpu"]
    assert all(a["detail"] for a in data["abilities"])


def bad_inputs(tmp_path, files, exported, image_path):
    """Arguments -> exit code and a word of the message."""
    text = tmp_path / "text.bin"
    text.write_text("not a checkpoint")
    cut = tmp_path / "cut.bin"
    cut.write_bytes(files.checkpoint.read_bytes()[:9000])
    wrong_keys = tmp_path / "keys.bin"
    torch.save({"weight": torch.zeros(1)}, wrong_keys)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    other = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), other)
    empty = tmp_path / "empty"
    empty.mkdir()
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    target = tmp_path / "never.onnx"
    known = ("--task", "semantic", "--classes", files.classes)
    model = exported("semantic")
    return {
        "not a checkpoint": (("export", text, "-o", target, *known), "not a PyTorch"),
        "truncated": (("export", cut, "-o", target, *known), "is truncated"),
        "wrong keys": (("export", wrong_keys, "-o", target, *known), "not contain an EoMT"),
        "no file": (("export", tmp_path / "no.bin", "-o", target, *known), "no checkpoint at"),
        "no name": (("export", "coco-eomt", "-o", target), "Did you mean"),
        "no classes": (("export", files.checkpoint, "-o", target, "--task", "semantic"), "classes"),
        "precision": (
            ("export", files.checkpoint, "-o", target, "--precision", "int3", *known), "int3"),
        "size": (("export", files.checkpoint, "-o", target, "--size", "big", *known), "'big'"),
        "unwritable": (
            ("export", files.checkpoint, "-o", occupied / "m.onnx", *known), "cannot be written"),
        "not our onnx": (("predict", other, image_path, "-o", tmp_path / "o"), "not written by"),
        "no onnx": (("predict", garbage, image_path, "-o", tmp_path / "o"), "not an ONNX file"),
        "inspect other": (("inspect", other), "not written by eomt-deploy"),
        "no image": (("predict", model, text, "-o", tmp_path / "o"), "not an image"),
        "empty folder": (("predict", model, empty, "-o", tmp_path / "o"), "contains no image"),
        "two in one": (("predict", model, image_path, text, "-o", tmp_path / "x.png"), "with -o"),
        "no output": (("predict", model, image_path, "-o", occupied / "o"), "cannot be written"),
        "threshold": (
            ("predict", model, image_path, "-o", tmp_path / "o", "--score-threshold", "0.5"),
            "score threshold does not apply"),
        "bench image": (("bench", "--engine", model, "--image", text), "not an image"),
        "no option": (("export", files.checkpoint), "-o"),
    }  # fmt: skip


def test_bad_inputs_have_words_and_exit_code_2(cli, tmp_path, files, exported, image_path):
    for name, (arguments, word) in bad_inputs(tmp_path, files, exported, image_path).items():
        code, out, err = cli(*arguments)
        assert code == 2, (name, err)
        assert word in err, (name, err)
        assert "Traceback" not in out + err, name
    assert not (tmp_path / "never.onnx").exists()


def test_missing_packages_and_failed_verification_have_their_codes(
    cli, files, tmp_path, exported, monkeypatch
):
    from eomt_deploy.exporting import verify
    from eomt_deploy.precision import Precision

    strict = {"fp32": Precision("float32", max_relative_error=0, min_agreement=1)}
    monkeypatch.setattr(verify, "PRECISIONS", strict)
    known = ("--task", "semantic", "--classes", files.classes)
    code, _, err = cli("export", files.checkpoint, "-o", tmp_path / "m.onnx", *known)
    assert code == 4
    assert "differs from the checkpoint" in err
    assert not (tmp_path / "m.onnx").exists()
    assert cli("bench", "--engine", exported("semantic"), "--device", "cuda")[0] == 3


def pictures(folder, array, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def test_results_never_leave_the_output_folder(cli, exported, gradient, tmp_path, monkeypatch):
    """Once, `..` in a photo's path led out of the folder and onto the photo itself."""
    pictures(tmp_path, gradient, "in/sub/a.png", "pics/x.png")
    before = (tmp_path / "pics/x.png").read_bytes()
    monkeypatch.chdir(tmp_path / "in/sub")
    code, _, _ = cli("predict", exported("semantic"), ".", "../../pics", "-o", "../../out")
    assert code == 0
    assert (tmp_path / "pics/x.png").read_bytes() == before
    assert len(list(tmp_path.glob("out/labels/**/*.png"))) == 2
    assert len(list(tmp_path.glob("pics/*"))) == 1


def test_every_image_gets_its_own_result(cli, exported, gradient, tmp_path):
    pictures(tmp_path / "in", gradient, "x.png", "x.bmp", "x.png.png", "[red]y.png", "z:car:.png")
    cli("predict", exported("semantic"), tmp_path / "in", "-o", tmp_path / "out")
    assert len(list((tmp_path / "out/labels").iterdir())) == 5
    assert list((tmp_path / "out/overlay").glob("[[]red*.jpg"))


def test_second_run_does_not_segment_the_results_of_the_first(cli, exported, gradient, tmp_path):
    pictures(tmp_path, gradient, "x.png")
    for _ in range(2):
        _, out, err = cli("predict", exported("semantic"), tmp_path, "-o", tmp_path / "out")
        assert "wrote 1 of 1" in out
    assert "left out 2 results of an earlier run" in err


def test_brackets_in_names_are_shown_as_they_are(cli, exported, tmp_path, image_path):
    import shutil

    model = tmp_path / "m[red].onnx"
    shutil.copy(exported("semantic"), model)
    code, out, _ = cli("bench", "--engine", model, "--iterations", 2, "--warmup", 0)
    assert code == 0
    assert "m[red].onnx" in out
    assert "no image or folder at a:car:.jpg" in cli("predict", model, "a:car:.jpg", "-o", "x")[2]


def test_names_that_are_no_text(cli, exported, gradient, tmp_path):
    folder = tmp_path / "in"
    pictures(folder, gradient, "plain.png")
    (folder / "plain.png").rename(folder / "caf\udce9.png")
    code, _, _ = cli("predict", exported("semantic"), folder, "-o", tmp_path / "out")
    assert code == 0
    assert json.loads((tmp_path / "out/predictions.json").read_text())["images"]


def test_thin_images(cli, exported, tmp_path):
    pictures(tmp_path / "in", np.zeros((2, 100, 3), np.uint8), "thin.png")
    pictures(tmp_path / "in", np.zeros((1, 3000, 3), np.uint8), "thinner.png")
    code, out, err = cli("predict", exported("semantic"), tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert "wrote 1 of 2" in out
    assert "more than 64 windows" in err
    assert Image.open(tmp_path / "out/overlay/thin.jpg").size == (100, 2)


def test_more_wrong_use(cli, files, exported, image_path, tmp_path):
    model = exported("semantic")
    known = ("--task", "semantic", "--classes", files.classes)
    target = tmp_path / "new" / "m.onnx"
    for arguments, word in (
        (("list", "--task", "panotpic"), "panoptic"),
        (("predict", model, image_path, "-o", tmp_path / "x.webp"), ".webp"),
        (("predict", model, image_path, "-o", tmp_path / "x.png", "--json", "-"), "--json"),
        (("bench", "--engine", model, "--json", model), "is an input of this command"),
        (("export", files.checkpoint, "-o", target, "--json", target, *known), "same file"),
        (("export", files.checkpoint, "-o", target, "--size", "²", *known), "Size"),
        (("export", files.checkpoint, "-o", target, "--num-blocks", 1, *known), "which stores 2"),
        (("export", "x" * 300 + ".bin", "-o", target, *known), "name too long"),
        (("predict", model, "x" * 300 + ".jpg", "-o", tmp_path / "o"), "name too long"),
    ):
        code, out, err = cli(*arguments)
        assert code == 2, (arguments, err)
        assert word in err, (arguments, err)
        assert "Traceback" not in out + err
    assert not target.parent.exists()


def test_export_without_torch_says_what_to_install(files, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from eomt_deploy.cli import main\n"
        f"main(['export', {str(files.checkpoint)!r}, '-o', {str(tmp_path / 'm.onnx')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    assert "eomt-deploy[export" in done.stderr
    assert "Traceback" not in done.stderr


def test_terminated_export_leaves_nothing(files, picture, tmp_path):
    images, target = tmp_path / "photos", tmp_path / "target"
    images.mkdir()
    target.mkdir()
    for index in range(500):  # enough not to be done before the signal comes
        (images / f"{index}.png").write_bytes(picture.read_bytes())
    command = [
        "export", files.checkpoint, "--task", "semantic", "--classes", files.classes,
        "--verify-images", images, "-o", target / "m.onnx",
    ]  # fmt: skip
    process = forked.start(command, code=forked.EXPORT, imports=forked.EXPORTS)
    for line in process.stderr:
        if line.startswith("comparing"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    time.sleep(0.1)
    assert list(target.iterdir()) == []


def test_report_that_would_replace_a_file_of_the_export(cli, files, tmp_path):
    content = files.checkpoint.read_bytes()
    output = tmp_path / "m.engine"
    for report in (
        files.checkpoint, files.classes, tmp_path / "m.onnx", tmp_path / "m.onnx.data",
        tmp_path / "m.engine.json",
    ):  # fmt: skip
        code, _, err = cli(
            "export", files.checkpoint, "--task", "panoptic", "--classes", files.classes,
            "--profile", "tensorrt-rtx", "-o", output, "--json", report,
        )  # fmt: skip
        assert code == 2, report
        assert "is an input of this command" in err or "name the same file" in err
    assert files.checkpoint.read_bytes() == content
    assert list(tmp_path.iterdir()) == []


def test_list_shows_licences(cli):
    _, out, _ = cli("list", "--dataset", "coco", "--task", "instance")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "(H100)  MIT  " in lines["coco-instance-eomt-large-640"]
    assert "AGPL-3.0 + DINOv3" in lines["coco-instance-eomt-small-640-lightly"]
    assert "MIT + DINOv3" in lines["coco-instance-eomt-large-640-dinov3"]
    assert (
        "AGPL-3.0: a copyleft licence, or a commercial licence of the authors; read https://" in out
    )
    assert "AGPL" not in cli("list", "--dataset", "made-up scenes")[1]
    rows = [line for line in cli("list")[1].splitlines() if "-eomt-" in line]
    assert len(rows) == len(catalog.checkpoints()) - 1  # one line each, e.g. for grep
    assert all(re.search(r"\d+M .*(MIT|AGPL-3.0)", row) for row in rows)
    entries = json.loads(cli("list", "--json")[1])
    assert all(entry["licences"] for entry in entries)
