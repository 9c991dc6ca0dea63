"""Complete runs in this process, with one Ray for all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
from batch_helpers import check_complete, check_equal, processes, rows, workers, write_images
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.batch import BatchConfig, run
from eomt_deploy.batch.cluster import _only_needed_processes
from eomt_deploy.batch.driver import State
from eomt_deploy.errors import ImageError, UsageError, VerificationError

pytestmark = [pytest.mark.external, pytest.mark.usefixtures("ray_here")]
OPTIONS = {"backend": "onnxruntime", "threads": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 images; two of them are damaged, and one has another name than its content."""
    paths = write_images(tmp_path_factory.mktemp("images"), 30)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    paths[11].write_text("text")
    paths[12].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    return paths


@pytest.fixture(scope="module")
def output(tmp_path_factory, exported, images):
    """The results of a complete run, with pictures, and its report."""
    folder = tmp_path_factory.mktemp("out") / "results"
    config = BatchConfig(
        exported("panoptic"), (str(images[0].parent),), str(folder), shard_size=8, labels=True,
        overlays=True, score_threshold=0.3, **OPTIONS,
    )  # fmt: skip
    states: list[State] = []
    return folder, run(config, states.append), states, config


def test_ray_starts_only_what_it_needs():
    """Each process costs memory, and a second of a core at its start."""
    found = processes(ancestor=os.getpid()).values()
    assert [text for text in found if "/raylet" in text]
    unwanted = ("/dashboard.py", "/log_monitor.py", "/monitor.py")
    assert not [text for text in found if any(name in text for name in unwanted)]


def test_a_ray_without_one_of_the_functions_still_starts_no_api_server(monkeypatch):
    """It would ask the metadata services of three clouds where it runs."""
    from ray._private import node

    monkeypatch.delattr(node.Node, "start_monitor")
    server = node.Node.start_api_server
    with _only_needed_processes():
        assert node.Node.start_api_server is not server
        assert not hasattr(node.Node, "start_monitor")
    assert node.Node.start_api_server is server


def test_every_mask_is_that_of_the_segmenter(output, exported, images):
    folder, report, states, _ = output
    found = check_complete(folder, images)
    segments = 0
    with Segmenter(exported("panoptic"), **OPTIONS) as segmenter:
        for row, path in zip(found, images, strict=True):
            if row["error"] is None:
                result = segmenter.predict(path, score_threshold=0.3)
                check_equal(row, result)
                segments += len(result)
                assert np.array_equal(
                    np.asarray(Image.open(folder / row["labels"])), np.asarray(result.label_image())
                )
                assert Image.open(folder / row["overlay"]).size == result.size[::-1]
                assert row["prepare_ms"] > 0
    assert segments > 3
    assert sum(report.segments.values()) == segments
    assert (report.images, report.shards, report.kept) == (30, 4, 0)
    assert states[-1].done == 30
    assert states[-1].where


def test_damaged_images_are_rows_with_an_error(output, images):
    folder, report, _, _ = output
    wrong = {i: row for i, row in enumerate(rows(folder)) if row["error"] is not None}
    assert set(wrong) == {3, 11, 12}
    for i, row in wrong.items():
        assert str(images[i]) in row["error"]
        assert "Fix: " in row["error"]
        assert (row["error_id"], row["segments"], row["labels"]) == ("E203", [], None)
    assert report.errors == {"E203": 3}


def test_the_summary(output):
    folder, report, _, _ = output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == 30
    assert summary["without_result"] == report.failed == 3
    assert summary["settings"]["thresholds"]["score"] == 0.3
    assert sum(c["segments"] for c in summary["classes"].values()) == sum(report.segments.values())
    names = {path.name for path in folder.iterdir()}
    assert names == {"batch.json", "summary.json", "plan", "shards", "labels", "overlays"}


def test_a_finished_run_is_not_repeated(output):
    folder, report, _, config = output
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")}
    again = run(config)
    assert (again.images, again.kept, again.segments) == (30, 30, report.segments)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.p*")} == before


def test_too_many_errors_stop_the_run_and_only_missing_shards_are_processed_later(
    output, images, tmp_path
):
    folder, report, _, config = output
    again = tmp_path / "again"
    settings = vars(config) | {"output": str(again)}
    with pytest.raises(ImageError, match="3 images have no result, and --max-errors allows 2"):
        run(BatchConfig(**settings | {"max_errors": 2}))
    missing = again / "shards" / "000000002.parquet"
    missing.unlink(missing_ok=True)
    kept = {path: path.stat().st_mtime_ns for path in again.glob("shards/*.parquet")}
    later = run(BatchConfig(**settings | {"max_errors": 3}))
    assert (
        kept.items() <= {path: path.stat().st_mtime_ns for path in again.glob("shards/*")}.items()
    )
    assert later.kept == sum(6 if path.stem.endswith("3") else 8 for path in kept)
    assert (later.images, later.failed, later.segments) == (30, 3, report.segments)
    times = ("prepare_ms", "network_ms", "finish_ms")
    for new, old in zip(check_complete(again, images), rows(folder), strict=True):
        assert {k: v for k, v in new.items() if k not in times} == {
            k: v for k, v in old.items() if k not in times
        }


def where(thread: threading.Thread) -> tuple[str, list[str]]:
    """The name of a thread, and the functions in which it is."""
    frame = sys._current_frames().get(thread.ident or 0)
    return thread.name, [f.name for f in traceback.extract_stack(frame)] if frame else []


def is_harmless(thread: threading.Thread) -> bool:
    """Whether a thread does not use Ray any more.

    Ray's prefetcher can miss the end of its work (`stop` between its check and its `wait`). It
    then waits forever.
    """
    if type(thread).__name__ == "_DummyThread":  # of Ray's C++ code
        return True
    name, functions = where(thread)
    return name == "Prefetcher" and functions[-1:] == ["wait"]


@pytest.fixture(scope="module")
def large(tmp_path_factory, exported):
    """A job that the next tests stop and continue: each start of its processes takes seconds."""
    folder = tmp_path_factory.mktemp("large")
    return write_images(folder / "in", 200), BatchConfig(
        exported("instance"), (str(folder / "in"),), str(folder / "out"), shard_size=8,
        concurrency=1, **OPTIONS,
    )  # fmt: skip


@pytest.mark.parametrize("phase", ["models open", "images are done"])
def test_a_stopped_run_leaves_no_thread(large, phase):
    """A thread that uses Ray after its shutdown would end this process with exit code 1."""
    before = set(threading.enumerate())
    during: set[str] = set()

    def stop(state: State) -> None:
        during.update(type(t).__name__ for t in set(threading.enumerate()) - before)
        if phase == "models open" or state.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as found:  # its traceback keeps the frames of the run
        run(large[1], stop)
    assert "StreamingExecutor" in during
    left = [t for t in set(threading.enumerate()) - before if t.is_alive()]
    assert not [where(t) for t in left if not is_harmless(t)]
    assert found.traceback


def test_killed_workers_cost_no_image(large):
    """Here of instances, whose masks overlap."""
    paths, config = large
    names = ["MapWorker", "Decoder", "Writer"]
    killed: list[int] = []

    def kill(state: State) -> None:
        if state.where and names and (found := workers(names[-1])):
            names.pop()
            killed.extend(found)
            for process in found:
                os.kill(process, signal.SIGKILL)

    report = run(config, kill)
    assert names == []
    assert len(killed) >= 3
    assert (report.images, report.failed) == (200, 0)
    found = check_complete(Path(config.output), paths)
    with Segmenter(config.model, **OPTIONS) as segmenter:
        for row, path in list(zip(found, paths, strict=True))[::20]:
            check_equal(row, segmenter.predict(path))


@pytest.mark.shared_data
def test_a_model_that_computes_nan_ends_the_run(tmp_path, shared):
    write_images(tmp_path / "in", 3)
    model = shared / "cases" / "nan" / "panoptic_nan.onnx"
    config = BatchConfig(model, (str(tmp_path / "in"),), str(tmp_path / "out"), **OPTIONS)
    with pytest.raises(VerificationError, match="NaN"):
        run(config)
    assert not list((tmp_path / "out").glob("shards/*"))


def test_labels_of_instances_are_refused(exported, tmp_path):
    config = BatchConfig(exported("instance"), ("x",), str(tmp_path / "out"), labels=True)
    with pytest.raises(UsageError, match="masks overlap"):
        run(config)
    assert not (tmp_path / "out").exists()
