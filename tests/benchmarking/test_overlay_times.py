from __future__ import annotations

import re
import sys

import overlay_times


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(overlay_times, "SIZES", ((60, 80),))
    monkeypatch.setattr(sys, "argv", ["overlay_times.py", "--rounds", "1"])
    overlay_times.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [re.sub(r"[\d.]+ ms", "t", row) for row in rows] == [
        f"| 80x60 | {task} | t |" for task in ("panoptic", "instance", "semantic")
    ]


def test_scene():
    for task, result in overlay_times.results(overlay_times.scene(120, 160)).items():
        assert len(result) == 20 if task != "semantic" else len(result) > 10
