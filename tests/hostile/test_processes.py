"""Processes that are killed at any moment, share a model among threads, are forked or spawned."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from eomt_deploy import Segmenter
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import TASKS
from hostile import seeds
from hostile.commands import (
    ROOT,
    Inputs,
    evaluate,
    export,
    leftovers,
    make_inputs,
    predict,
    results,
    resume,
    run,
    start,
    unfinished,
)

KILLS = int(os.environ.get("HOSTILE_KILLS", "2"))
"""Number of kills per command; every other kill happens as soon as there is a temporary file."""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "in", side=400)


@pytest.fixture(scope="module")
def warm() -> None:
    """Start the process that the commands are forked from: they are killed after given times."""
    assert run(["--version"])[0] == 0


def kill_once(arguments: list[object], out: Path, after: float, at_write: bool) -> bool:
    """Start a command and kill it with signal 9; return whether it was still running."""
    process = start(arguments)
    ends = time.monotonic() + after
    while process.poll() is None and time.monotonic() < ends:
        if at_write and leftovers(out):
            break
        time.sleep(0.002)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("command", "kills"),
    [(predict, KILLS), (resume, KILLS), (evaluate, KILLS), (export, KILLS // 2)],
    ids=["predict", "predict --resume", "eval --resume", "export"],
)  # fmt: skip
def test_killed_at_any_moment(inputs, tmp_path, command, kills):
    """No file is incomplete; the next run gives undisturbed results, and cleans up."""
    before = inputs.content()
    wanted, seconds = None, 60.0
    if command is not export:  # two exports differ in names and dates, but not in their computation
        undisturbed = tmp_path / "undisturbed"
        undisturbed.mkdir()
        started = time.monotonic()
        code, text = run(command(inputs, undisturbed))
        seconds = time.monotonic() - started
        assert code == 0, text
        wanted = results(undisturbed)
    rng, killed, left = Random(9), 0, []
    number = -1
    # On a busy machine the undisturbed run can be the slowest: then the kills come earlier.
    while (number := number + 1) < kills or (not killed and number < kills + 3):
        seconds *= 0.6 if number >= kills else 1
        out = tmp_path / f"out{number}"
        out.mkdir()
        arguments = command(inputs, out)
        at_write = number % 2 == 0
        after = seconds * (1 if at_write else rng.uniform(0.4, 1))
        killed += kill_once(arguments, out, after, at_write)
        assert not unfinished(out)
        code, text = run(arguments)
        assert code == 0, text
        found = results(out)
        if wanted is None:
            assert list(found) == ["m.onnx"]
        else:
            assert found.keys() == wanted.keys()
            assert [name for name in wanted if found[name] != wanted[name]] == []
        left += leftovers(out)
    assert killed, "no run was killed: the test showed nothing"
    assert inputs.content() == before
    assert not left, "the next run must remove what a dead process left"


def digest(result: Segmentation) -> str:
    """Hash of everything in a result."""
    content = [repr((s.class_id, s.score, s.area, s.box)) for s in result.segments]
    maps = [m.tobytes() for m in (result.class_map, result.segment_map) if m is not None]
    masks = [np.packbits(s.mask).tobytes() for s in result.segments]
    return hashlib.sha256(b"".join([repr(content).encode(), *maps, *masks])).hexdigest()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_eight_threads_share_a_segmenter(tmp_path, task, backend):
    """With any mixture of calls, each image has the same result as alone."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    path.write_bytes(seeds.onnx_model(task))
    images = [np.asarray(seeds.picture(60 + 31 * i, 90 - 5 * i, i)) for i in range(8)]
    with Segmenter(path, backend=backend, device="cpu") as segmenter:
        wanted = [digest(segmenter.predict(image)) for image in images]

        def work(number: int) -> list[str]:
            mine = images[number:] + images[:number]
            kind = number % 3
            if kind == 0:
                found = [segmenter.predict(image) for image in mine]
            elif kind == 1:
                found = segmenter.predict_batch(mine)
            else:
                found = list(segmenter.stream(mine))
            return [digest(result) for result in found]

        with ThreadPoolExecutor(8) as pool:
            for number, found in enumerate(pool.map(work, range(8))):
                assert found == wanted[number:] + wanted[:number]


CHILD = """
import multiprocessing, sys
from eomt_deploy import Segmenter
from eomt_deploy.errors import EomtDeployError

model, image, backend = sys.argv[1:]

def classes(segmenter):
    result = segmenter.predict(image)
    return [(s.class_id, round(s.score, 5), s.area) for s in result.segments]

def work(answers, segmenter):
    try:
        if segmenter is None:
            segmenter = Segmenter(model, backend=backend, device="cpu")
        answers.put(("found", classes(segmenter)))
    except EomtDeployError as error:
        answers.put(("refused", str(error)))

def in_a_child(context, shared, wanted):
    answers = context.Queue()
    try:
        child = context.Process(target=work, args=(answers, shared))
        child.start()
    except EomtDeployError as error:
        return f"refused {error}"
    try:
        kind, found = answers.get(timeout=40)
    except Exception:
        child.kill()
        return f"hangs, or died: {child.exitcode}"
    child.join(20)
    if kind == "found" and found != wanted:
        return f"finds {found} instead of {wanted}"
    return kind if kind == "found" else f"refused {found}"

if __name__ == "__main__":
    shared = Segmenter(model, backend=backend, device="cpu")
    wanted = classes(shared)
    for method in ("fork", "spawn", "forkserver"):
        for place in ("parent", "child"):
            segmenter = shared if place == "parent" else None
            answer = in_a_child(multiprocessing.get_context(method), segmenter, wanted)
            print(method, place, answer.splitlines()[0], sep="\t", flush=True)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_other_processes(tmp_path, inputs, backend):
    """A segmenter opened in a child process works; the parent's works there or raises an error."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    script, model = tmp_path / "child.py", tmp_path / "m.onnx"
    script.write_text(CHILD)
    model.write_bytes(seeds.onnx_model("panoptic", 512))  # enough work for several threads
    done = subprocess.run(
        [sys.executable, script, model, inputs.images / "00.png", backend],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout + done.stderr
    for line in lines:
        method, place, answer = line.split("\t")
        good = answer == "found" or (place == "parent" and answer.startswith("refused "))
        assert good, f"{method}, opened in the {place}: {answer}\n{done.stderr}"
