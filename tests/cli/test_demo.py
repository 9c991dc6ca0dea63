"""`eomt-deploy demo`: without a network, and with commands that the user can repeat."""

from __future__ import annotations

import shlex
import socket
import time

import pytest
from PIL import Image

from eomt_deploy.cli.demo import find_viewer


def test_it_exports_predicts_and_prints_its_commands(cli, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the demo used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = tmp_path / "my demo"
    code, out, err = cli("demo", "-o", folder, "--no-open")
    assert code == 0, err
    overlays = sorted((folder / "out" / "overlay").iterdir())
    assert len(overlays) == 6
    assert Image.open(overlays[0]).size == (320, 240)
    commands = [shlex.split(line[2:]) for line in out.splitlines() if line.startswith("$ ")]
    assert [command[:2] for command in commands] == [
        ["eomt-deploy", "export"], ["eomt-deploy", "predict"],
    ]  # fmt: skip
    code, _, err = cli(*commands[1][1:])  # as printed, also with a space in the path
    assert code == 0, err


@pytest.mark.parametrize("display", [True, False])
def test_it_opens_the_overlay_if_there_is_a_display(cli, tmp_path, monkeypatch, display):
    program, seen = tmp_path / "xdg-open", tmp_path / "seen"
    program.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", ":0")
    else:
        monkeypatch.delenv("DISPLAY", raising=False)
    code, out, err = cli("demo", "-o", tmp_path / "demo")
    assert code == 0, err
    first = str(tmp_path / "demo" / "out" / "overlay" / "scene-1.jpg")
    if not display:
        assert f"There is no display; open {first}" in out
        assert not seen.exists()
        return
    deadline = time.monotonic() + 20
    while not (seen.exists() and seen.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert seen.read_text().strip() == first


def test_a_file_of_the_user_is_kept(cli, tmp_path):
    model = tmp_path / "tiny.onnx"
    model.write_text("mine")
    code, _, err = cli("demo", "-o", tmp_path, "--no-open")
    assert code == 2
    assert "--overwrite" in err
    assert model.read_text() == "mine"


def test_the_viewer_of_each_system():
    assert find_viewer("darwin", {}) == ["open"]
    assert find_viewer("win32", {})[0] == "cmd"
    assert find_viewer("linux", {"PATH": "/nowhere", "DISPLAY": ":0"}) is None
    assert find_viewer("linux", {"PATH": "/usr/bin"}) is None
