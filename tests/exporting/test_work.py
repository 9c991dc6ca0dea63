"""The plan of an export: fraction, expected duration, and `--quick`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eomt_deploy.errors import UsageError
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.work import Work, duration, spread


def test_fractions_follow_the_cost_of_the_steps():
    seen = []
    work = Work(lambda text, fraction: seen.append((text, fraction)))
    work.say("reading")
    work.plan("first", 2, 1)
    work.plan("second", 1, 6)
    first, second = work.phase("first"), work.phase("second")
    for say, text in ((first, "a"), (first, "b"), (second, "c"), (work.say, "end")):
        say(text)
    assert seen == [("reading", None), ("a", 0), ("b", 1 / 8), ("c", 2 / 8), ("end", 1)]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.data())
def test_fractions_never_fall_and_never_exceed_1(phases, data):
    """Even if a phase has more or fewer steps than planned."""
    seen = []
    work = Work(lambda _, fraction: seen.append(fraction))
    for number, (steps, passes) in enumerate(phases):
        work.plan(str(number), steps, passes)
    for number, (steps, _) in enumerate(phases):
        for _ in range(data.draw(st.integers(0, steps + 2))):
            work.phase(str(number))("")
        work.say("")
    assert all(0 <= fraction <= 1 for fraction in seen)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "10 s"), (44, "40 s"), (89, "90 s"), (91, "2 min"), (269, "4 min"), (3600, "60 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.lists(st.integers(), max_size=20), st.integers(2, 9))
def test_spread_keeps_order_and_ends(items, count):
    found = spread(items, count)
    assert len(found) == min(len(items), count)
    if items:
        assert (found[0], found[-1]) == (items[0], items[-1])


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(root / f"{index:02}.png")
    return root


def test_quick_leaves_the_blocks_out(files, tmp_path, folder, cli):
    command = (
        "export", files.checkpoint, "--task", "panoptic", "--classes", files.classes,
        "--precision", "int8", "--calibrate", folder, "-o", tmp_path / "m.onnx",
    )  # fmt: skip
    code, out, err = cli(*command, "--quick", "--json", tmp_path / "r.json")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verdict"]["sensitivity"] == {}
    assert report["verdict"]["chosen"]["judgement"]["images"] == 2
    assert report["verification"]["images"] == 1
    assert json.loads(report["spec"]["provenance"]["calibration"])["images"] == 6
    assert "expected duration: about 10 s" in err
    assert "measuring block" not in err
    assert "verdict:" in out
    code, _, err = cli(*command, "--quick", "--budget", "1")
    assert code == 2
    assert "--quick and --budget conflict" in err
    with pytest.raises(UsageError, match="--quick has no effect with fp16"):
        ExportConfig(str(files.checkpoint), tmp_path / "x.onnx", precision="fp16", quick=True)


def test_the_fraction_of_a_quantised_export_reaches_the_end(files, tmp_path, folder):
    seen = []
    config = ExportConfig(
        str(files.checkpoint), tmp_path / "m.onnx", task="panoptic", classes=files.classes,
        precision="int8", calibrate=folder,
    )  # fmt: skip
    report = export(config, lambda text, fraction: seen.append((text, fraction)))
    fractions = [fraction for _, fraction in seen if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.9
    assert set(report.verdict.sensitivity) == {0, 1, 2}
    assert {judged.images for judged in report.verdict.sensitivity.values()} == {1}
