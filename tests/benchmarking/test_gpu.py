"""The run of all GPU sections: order, time limits, crashes, and what is written."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import gpu
import pytest
from gpu import SECTIONS, Section, file_name, run_all

PASSES = """
import sys
open(sys.argv[-1], "w").write("{}")
print("fine")
"""
FAILS = "print('before'); raise SystemExit('failed:\\nsomething is wrong')"
CRASHES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[-1], "w").write("{}")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[-1] + ".pid", "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def section(tmp_path):
    def make(name, code, seconds=30.0):
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        return Section(name, (str(path),), seconds)

    return make


def test_every_section_is_run_and_reported(section, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "KILL_SECONDS", 1)
    sections = [
        section("a", PASSES), section("b", FAILS), section("c", CRASHES),
        section("d", HANGS, seconds=2), section("e", PASSES),
    ]  # fmt: skip
    folder = tmp_path / "results"
    folder.mkdir()
    found = run_all(sections, folder, 600, {"kind": "gpu-run"})
    assert [outcome.ended for outcome in found] == [
        "passed",
        "failed",
        "failed",
        "stopped",
        "passed",
    ]
    assert found[1].reason == "something is wrong"
    assert "-11" in found[2].reason
    assert [outcome.file for outcome in found] == ["a.json", None, None, "d.json", "e.json"]
    report = json.loads((folder / "gpu.json").read_text())
    assert report["kind"] == "gpu-run"
    assert [s["ended"] for s in report["sections"]] == [o.ended for o in found]
    assert (folder / "a.log").read_text() == "fine\n"
    child = int((folder / "d.json.pid").read_text())
    for _ in range(100):  # a killed child stays a zombie until it is collected
        state = _state(child)
        if state in ("", "Z"):
            break
        time.sleep(0.05)
    assert state in ("", "Z")


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_sections_are_left_out_when_the_time_is_over(section, tmp_path):
    (tmp_path / "r").mkdir()
    (outcome,) = run_all([section("a", PASSES)], tmp_path / "r", 10, {})
    assert (outcome.ended, outcome.reason) == ("left out", "the time is over")


def test_results_of_an_earlier_run_are_not_taken_for_new_ones(section, tmp_path):
    (tmp_path / "b.json").write_text("{}")
    (outcome,) = run_all([section("b", FAILS)], tmp_path, 60, {})
    assert (outcome.ended, outcome.file) == ("failed", None)


def test_the_programs_know_their_sections():
    check, paper = importlib.import_module("gpu_check"), importlib.import_module("gpu_paper")
    for section in SECTIONS:
        program, *arguments = section.program
        if program == "gpu_check.py":
            assert arguments[1] in check.SECTIONS
        elif program == "gpu_paper.py":
            assert paper.chosen_sections(arguments[1:])
    grouped = [repr(s) for group in paper.GROUPS for s in paper.chosen_sections([group])]
    assert sorted(grouped) == sorted(map(repr, paper.SECTIONS))
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("eomt_deploy.devices.current_gpu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="reports no GPU"):
        gpu.main()


def test_folder_names():
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
