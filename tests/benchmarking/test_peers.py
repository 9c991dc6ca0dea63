"""benchmarks/peers.py: the protocol of its processes with a small peer, its table and its page."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from peer_process import Peer, PeerError
from peer_table import COLUMNS, cells, page, summarize
from peers import BASE, HERE, OWN_PYTORCH, Rows, rows_of

WORKER = HERE / "peers" / "worker.py"
MEASURED = HERE / "results" / "amd-epyc-2-cores" / "peers.json"
FAMILY = """
import sys
from worker import Row

def prepare(task, row, work):
    if row == "not exported":
        raise NotImplementedError("this row is\\nnot supported")
    (work / "prepared").write_text(task)

def predict(path):
    print("a line that a library prints")
    if path == "end":
        sys.exit(3)
    return [[int(path), -1]]

def load(task, row, work):
    return Row(predict, lambda result: result, ("numpy",))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a process of a family with a row that returns the number in the name of the image."""
    (tmp_path / "small_rows.py").write_text(FAMILY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    running = []

    def begin(action: str, row: str = "row") -> Peer:
        line = [sys.executable, WORKER, "small", action, "semantic", row, tmp_path]
        running.append(Peer(line, tmp_path / "log.txt", 60))
        return running[-1]

    yield begin
    for peer in running:
        peer.close()


def test_a_row_answers_with_its_times_memory_and_labels(start, tmp_path):
    start("prepare")
    assert (tmp_path / "prepared").read_text() == "semantic"
    peer = start("serve")
    assert peer.versions == {"numpy": np.__version__}
    for number in (7, 8):
        file = tmp_path / f"{number}.npy"
        answer = peer.ask({"image": str(number), "labels": str(file)}, 60)
        assert np.load(file).tolist() == [[number, -1]]
        assert np.load(file).dtype == np.int32
        assert answer["seconds"] > 0
        assert answer["peak_bytes"] > 1e6
    assert "a line that a library prints" in (tmp_path / "log.txt").read_text()


def test_errors_of_a_row_are_its_own_in_one_line(start):
    with pytest.raises(PeerError, match=r"^NotImplementedError: this row is not supported$"):
        start("prepare", "not exported")
    peer = start("serve")
    with pytest.raises(PeerError, match=r"^ValueError: invalid literal for int"):
        peer.ask({"image": "none"}, 60)
    assert "seconds" in peer.ask({"image": "1"}, 60)  # it goes on after an error
    with pytest.raises(PeerError, match=r"ended with code 3, see log\.txt"):
        peer.ask({"image": "end"}, 60)
    with pytest.raises(PeerError, match=r"ended with code 3"):
        peer.ask({"image": "1"}, 60)


def test_a_row_that_does_not_answer_in_time(tmp_path):
    with pytest.raises(PeerError, match=r"no answer within 0\.1 s"):
        Peer([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log.txt", 0.1)


def test_every_row_has_a_family_and_a_reference():
    for task in ("panoptic", "instance", "semantic"):
        rows = rows_of(task)
        assert next(iter(rows)) == BASE
        for family, _ in rows.values():
            assert (HERE / "peers" / f"{family}_rows.py").is_file()
            assert OWN_PYTORCH.get(family, BASE) in rows or family == "getitune"


def test_agreements_are_shares_of_pixels(tmp_path):
    rows = Rows.__new__(Rows)
    rows.task, rows.labels = "semantic", tmp_path
    rows.found = {
        BASE: {"family": "transformers"},
        "LibreYOLO, PyTorch": {"family": "libreyolo"},
        "LibreYOLO, ONNX": {"family": "libreyolo"},
        "LightlyTrain, ONNX": {"family": "lightly", "error": "no"},
    }
    for title, labels in zip(rows.found, ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 4]), strict=False):
        np.save(rows._labels_of(title), np.array([labels], np.int32))
    rows.agreements()
    exported = rows.found["LibreYOLO, ONNX"]
    assert exported["equal_to_own"] == 0.75
    assert exported["equal_to_transformers"] == 0.5
    assert "equal_to_own" not in rows.found["LibreYOLO, PyTorch"]
    assert "equal_to_transformers" not in rows.found[BASE]
    assert "equal_to_transformers" not in rows.found["LightlyTrain, ONNX"]


def example() -> dict:
    """A result file with a valid row, a row with too few rounds, and a row that does not run."""
    base, fast = [100.0, 101, 99, 100, 102, 100], [50.0, 50, 49, 51, 50, 50]
    common = {"family": "ours", "versions": {"numpy": "1"}, "peak_bytes": 5_000_000}
    return {
        "environment": {"cpu": "X", "cores": 2, "cpu_flags": ["avx2"], "date": "2026-01-02T03"},
        "tasks": {
            "semantic": {
                "others": 0.01,
                "rows": {
                    "eomt-deploy, X": common | {"equal_to_own": 0.5} | summarize(base, fast, 0.0),
                    "other, X": common | summarize(base[:2], fast[:2], 0.0),
                    "third, X": {"family": "lightly", "error": "A | B"},
                },
            }
        },
    }


def test_a_row_of_the_table():
    rows = example()["tasks"]["semantic"]["rows"]
    valid, few, broken = (cells(title, row) for title, row in rows.items())
    assert valid[:2] == ["eomt-deploy, X", "50"]
    assert re.fullmatch(r"2\.0\d \(\d\.\d\d–\d\.\d\d\)", valid[2])
    assert valid[3:] == ["5", "50.0%", "", "VALID"]
    assert few[2] == "no conclusion"
    assert few[6] == "INVALID: few rounds"
    assert broken[6] == "does not run: A | B"
    assert {len(valid), len(few), len(broken)} == {len(COLUMNS)}


def test_the_page_has_all_rows_of_the_file():
    text = page(example(), Path("benchmarks/results/x.json"))
    assert "| eomt-deploy, X | 50 | 2.0" in text
    assert "does not run: A \\| B" in text
    assert "- eomt-deploy: numpy 1" in text
    assert "](../benchmarks/results/x.json)" in text


@pytest.mark.skipif(not MEASURED.is_file(), reason="not measured yet")
def test_the_page_is_that_of_the_measured_file():
    data = json.loads(MEASURED.read_text())
    document = HERE.parent / "docs" / "peers.md"
    assert document.read_text() == page(data, MEASURED.relative_to(HERE.parent))
