"""`eomt-deploy batch` as a process that is killed, stopped and watched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_helpers import check_complete, check_equal, processes, workers, write_images
from watched import Watched, compile_shim

from eomt_deploy import Segmenter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
WAIT_SECONDS = 120


def command(model, images, output, *more):
    arguments = [
        "-m", "eomt_deploy", "batch", model, images, "-o", output,
        "--shard-size", 8, "--threads", 1, "--backend", "onnxruntime", *more,
    ]  # fmt: skip
    return [sys.executable, *map(str, arguments)]


def start(line):
    # Without RAY_worker_niceness, other tests on the machine come first.
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"RAY_worker_niceness": "0"},
    )  # fmt: skip


def until(condition):
    """Wait for a condition; it must become true."""
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.external
def test_kill_9_and_again_gives_each_image_once(exported, tmp_path):
    """The second run is watched: it contacts nobody, and leaves no file elsewhere."""
    paths = write_images(tmp_path / "in", 160)
    output = tmp_path / "out"
    line = command(exported("semantic"), tmp_path / "in", output)
    first = start(line)
    until(lambda: list(output.glob("shards/*.parquet")) or first.poll() is not None)
    models = workers("MapWorker", ancestor=first.pid)
    assert first.poll() is None, first.communicate()
    first.kill()
    first.communicate()
    assert models
    finished = {path: path.read_bytes() for path in output.glob("shards/*.parquet")}
    assert 0 < len(finished) < 20

    shim = compile_shim(tmp_path)
    watched = Watched(tmp_path / "watched", shim, {"RAY_worker_niceness": "0"})
    said = watched.run(*line[1:])
    assert "wrote 160 images, " in said
    # Ray looks up the name of this machine.
    assert set(watched.contacts) <= {f"getaddrinfo {socket.gethostname()}"}
    assert watched.files() == []
    watched.proxy.close()
    rows = check_complete(output, paths)
    assert {path: path.read_bytes() for path in finished} == finished
    with Segmenter(exported("semantic"), backend="onnxruntime", threads=1) as segmenter:
        for row, path in list(zip(rows, paths, strict=True))[::20]:
            check_equal(row, segmenter.predict(path))
    for process in models:  # those of the killed run are gone
        until(lambda process=process: not Path(f"/proc/{process}").exists())


@pytest.mark.external
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process(exported, tmp_path, number):
    write_images(tmp_path / "in", 600)
    output = tmp_path / "out"
    line = command(exported("panoptic"), tmp_path / "in", output, "--concurrency", 1)
    running = start(line)
    until(lambda: list(output.glob("shards/*.parquet")) or running.poll() is not None)
    below = processes(ancestor=running.pid)
    assert len(below) > 5
    if number == signal.SIGINT:  # Ctrl-C in a terminal reaches the complete group
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    out, err = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 128 + number, err
    assert "of 600 images are done" in err
    assert "run the same command again to do the rest" in err
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in out + err
    for process in below:
        until(lambda process=process: not Path(f"/proc/{process}").exists())


def test_errors_before_the_start(cli, exported, tmp_path):
    model = exported("panoptic")
    write_images(tmp_path / "in", 1)
    out = tmp_path / "out"
    for arguments, message in (
        ((model, tmp_path / "missing", "-o", out), "no image or folder"),
        ((model, tmp_path / "in", "-o", out, "--shard-size", 0), "`shard_size` must be at least 1"),
        ((model, tmp_path / "in", "-o", out, "--conf", 2), "must be between 0 and 1"),
        ((model, tmp_path / "in", "-o", out, "--backend", "x"), "no backend 'x'"),
        ((tmp_path / "m.onnx", tmp_path / "in", "-o", out), "There is no model at"),
    ):
        code, stdout, err = cli("batch", *arguments)
        assert code == 2
        assert message in err
        assert "fix: " in err
        assert stdout == ""
