"""The small programs in examples/, run as a user runs them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
import tiny
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.exporting import ExportConfig, export

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples" / "scenes" / "scene-1.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "tiny.onnx"
    export(ExportConfig("eomt-tiny-scenes", path))
    return path


def run_process(name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def run(name, *arguments):
    """Like :func:`run_process`, but in this process, so that nothing is imported again."""
    path, code = str(ROOT / "examples" / name), 0
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        if isinstance(code, str):  # as the interpreter handles it
            print(code, file=sys.stderr)
            code = 1
    return subprocess.CompletedProcess(path, code, out.getvalue(), err.getvalue())


def test_predict(model, tmp_path):
    done = run_process("predict.py", model, SCENE, tmp_path / "seen.png")
    assert done.returncode == 0, done.stderr
    first, *regions = done.stdout.splitlines()
    assert first == f"Segmentation(panoptic, 240x320, {len(regions)} segments)"
    assert [line.split()[0] for line in regions] == ["sand", "water", "crate", "ball", "sky"]
    assert Image.open(tmp_path / "seen.png").size == (320, 240)


def test_predict_shows_errors_in_words(model, tmp_path):
    done = run_process("predict.py", tmp_path / "missing.onnx", SCENE, tmp_path / "seen.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error E205: There is no model at")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_usage(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"python examples/{path.name}"):
        runpy.run_path(str(path), run_name="__main__")


def test_stream_video(model, tmp_path):
    scene = cv2.imread(str(SCENE))
    height, width = scene.shape[:2]
    clip = cv2.VideoWriter(
        str(tmp_path / "in.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12, (width, height)
    )
    for shift in range(7):  # odd, and more than `stream` takes ahead
        clip.write(np.roll(scene, 10 * shift, axis=1))
    clip.release()
    done = run("stream_video.py", model, tmp_path / "in.mp4", tmp_path / "seen.mp4")
    assert done.stdout == f"wrote 7 frames to {tmp_path / 'seen.mp4'}\n", done.stderr
    video = cv2.VideoCapture(str(tmp_path / "seen.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert video.get(cv2.CAP_PROP_FPS) == 12
    _, frame = video.read()
    with Segmenter(model) as segmenter:
        overlay = segmenter.predict(SCENE).overlay(labels=False)
    again = run("stream_video.py", model, tmp_path / "in.mp4", tmp_path / "in.mp4")
    assert again.returncode == 1
    assert "in.mp4 already exists" in again.stderr
    missing = run("stream_video.py", model, tmp_path / "in.mp4", tmp_path / "none" / "a.mp4")
    assert missing.returncode == 1
    assert "cannot be written" in missing.stderr
    difference = cv2.absdiff(frame, np.asarray(overlay)[:, :, ::-1])
    assert difference.mean() < 8  # lossy compression; a frame without overlay has 40
    assert cv2.absdiff(frame, scene).mean() > 20


def test_contact_sheet(model, tmp_path):
    done = run("contact_sheet.py", model, tmp_path / "sheet.png", SCENE, SCENE)
    assert done.stdout == f"wrote 2 rows to {tmp_path / 'sheet.png'}\n", done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(SCENE) as scene:
        assert sheet.height == 32 + 2 * 240 + 8
        assert sheet.width > 3 * 320  # the legend is additional
        assert np.array_equal(np.asarray(sheet)[32:272, :320], np.asarray(scene.convert("RGB")))
        ours, theirs = np.asarray(sheet)[32:272, 328:648], np.asarray(sheet)[32:272, -320:]
    with Segmenter(model) as segmenter:
        assert np.array_equal(ours, np.asarray(segmenter.predict(SCENE).overlay()))
    assert cv2.absdiff(ours, theirs).mean() > 5
    again = run("contact_sheet.py", model, tmp_path / "sheet.png", SCENE)
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_export_and_build(tmp_path, capsys):
    """In this process, so that PyTorch is not imported again."""
    files = tiny.write(tmp_path)
    program = runpy.run_path(str(ROOT / "examples" / "export_and_build.py"))
    arguments = files.checkpoint, SCENE.parent, tmp_path / "models", "panoptic", files.classes
    program["main"](*map(str, arguments))
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "models").iterdir()}
    assert written >= {"fp32.onnx", "int8.onnx", "int8.xml", "int8.bin"}
    assert "points of label agreement" in printed
    assert "\nint8.xml Segmentation(panoptic, " in printed


def test_evaluate(model, tmp_path):
    scenes = ROOT / "examples" / "tiny_checkpoint" / "scenes.py"
    arguments = [tmp_path / "data", "--count", "4", "--seed", "7"]
    subprocess.run([sys.executable, scenes, *arguments], check=True)
    done = run("evaluate.py", model, tmp_path / "data", tmp_path / "worst")
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    with Segmenter(model) as segmenter:
        report = evaluate(segmenter, open_dataset([tmp_path / "data"], segmenter.spec))
    assert first == f"4 images, PQ {report.scores.value:.2f}"
    assert [row.split()[0] for row in rows] == [row["class"] for row in report.scores.per_class]
    worst = {Path(report.per_image[position][0]).stem for position in report.worst(3)}
    assert {path.stem for path in (tmp_path / "worst").iterdir()} == worst


def test_supervision_annotate(model, tmp_path):
    done = run("supervision_annotate.py", model, SCENE, tmp_path / "seen.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 objects: crate 1.0")  # no stuff
    changed = cv2.absdiff(cv2.imread(str(tmp_path / "seen.png")), cv2.imread(str(SCENE)))
    assert 0.05 < (changed.max(-1) > 0).mean() < 0.3  # the objects and their labels, nothing else


def test_notebook(tmp_path, monkeypatch):
    """It runs from the first cell to the last, and prints what its stored outputs show.

    In this process, so that PyTorch is not imported again.
    """
    path = ROOT / "examples" / "quick_start.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # IPython replaces it
    shell, values = InteractiveShell(), []
    shell.display_trap.hook = CapturingDisplayHook(shell, values)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        values.clear()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            shell.run_cell(cell.source).raise_error()
        found = [printed.getvalue(), *(value["data"]["text/plain"] for value in values)]
        assert [without_addresses(text) for text in found if text] == stored(cell)
    assert any(stored(cell) for cell in cells)


def stored(cell):
    """What a cell printed on stdout, and its value as text."""
    outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    texts = (o.text if o.output_type == "stream" else o.data["text/plain"] for o in outputs)
    return [without_addresses(text) for text in texts]


def without_addresses(text):
    """The address of an object in memory is different in each run."""
    return re.sub(r" at 0x[0-9A-F]+", "", text)


def test_own_engine_gives_the_same_result(model):
    program = runpy.run_path(str(ROOT / "examples" / "own_engine.py"))
    found = program["predict"](str(model), str(SCENE))
    with Segmenter(model, backend="onnxruntime") as segmenter:
        expected = segmenter.predict(SCENE)
    assert np.array_equal(found.segment_map, expected.segment_map)
    assert [s.class_name for s in found.segments] == [s.class_name for s in expected.segments]


def test_own_engine_as_a_program(model):
    done = run("own_engine.py", model, SCENE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Segmentation(panoptic, 240x320, 5 segments)\nsand 1.00 (")
