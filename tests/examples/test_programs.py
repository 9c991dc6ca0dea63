"""The small programs in examples/, run as a user runs them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.exporting import ExportConfig, export

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples" / "scenes" / "scene-1.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "tiny.onnx"
    export(ExportConfig("eomt-tiny-scenes", path))
    return path


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_predict(model, tmp_path):
    done = run("predict.py", model, SCENE, tmp_path / "seen.png")
    assert done.returncode == 0, done.stderr
    first, *regions = done.stdout.splitlines()
    assert first == f"Segmentation(panoptic, 240x320, {len(regions)} segments)"
    assert [line.split()[0] for line in regions] == ["sand", "water", "crate", "ball", "sky"]
    assert Image.open(tmp_path / "seen.png").size == (640, 480)


def test_predict_shows_errors_in_words(model, tmp_path):
    done = run("predict.py", tmp_path / "missing.onnx", SCENE, tmp_path / "seen.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error E205: There is no model at")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["predict.py", "own_engine.py"])
def test_usage(name):
    done = run(name)
    assert done.returncode == 1
    assert f"python examples/{name}" in done.stderr


def test_own_engine_gives_the_same_result(model):
    specification = importlib.util.spec_from_file_location(
        "own_engine", ROOT / "examples" / "own_engine.py"
    )
    own_engine = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(own_engine)
    found = own_engine.predict(str(model), str(SCENE))
    with Segmenter(model, backend="onnxruntime") as segmenter:
        expected = segmenter.predict(SCENE)
    assert np.array_equal(found.segment_map, expected.segment_map)
    assert [s.class_name for s in found.segments] == [s.class_name for s in expected.segments]


def test_own_engine_as_a_program(model):
    done = run("own_engine.py", model, SCENE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Segmentation(panoptic, 240x320, 5 segments)\nsand 1.00 (")
