from __future__ import annotations

import json
import multiprocessing
import time

import pytest

from eomt_deploy.batch import shards
from eomt_deploy.batch.config import BatchConfig
from eomt_deploy.batch.places import Place
from eomt_deploy.batch.settings import (
    NAME,
    locked,
    model_sha256,
    prepare_output,
    read_spec,
    settings_of,
)
from eomt_deploy.errors import ModelFileError, OutputError, UsageError

IMAGES = [f"/in/{i}.png" for i in range(5)]
SETTINGS = {"model": "m", "thresholds": {"score": 0.5}, "shard_size": 2}


@pytest.fixture(params=["", "local://"])
def place(request, tmp_path):
    """An output folder that does not exist yet, here and in another file system."""
    return Place.of(f"{request.param}{tmp_path}/out")


def prepare(place, images=IMAGES, overwrite=False, **changes):
    return prepare_output(place, images, {**SETTINGS, **changes}, overwrite=overwrite)


def finish(place, output, shard, images=2):
    rows = [{"error_id": None, "segments": []}] * images
    facts = shards.facts_of(shard, output.run, rows, 1.0)
    shards.write(place, facts, rows)
    return facts


def test_the_same_command_continues(place):
    output = prepare(place)
    assert (output.plan.images, output.plan.shards) == (5, 3)
    assert output.finished.shards == set()
    finish(place, output, 1)
    again = prepare(place)
    assert (again.finished.shards, again.finished.images) == ({1}, 2)
    assert again.run == output.run


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (IMAGES, {"model": "n"}, "model was m, now it is n"),
        (IMAGES, {"thresholds": {"score": 0.6}}, r"thresholds was \{'score': 0.5\}, now"),
        (IMAGES, {"shard_size": 3}, "shard_size was 2, now it is 3"),
        (IMAGES[1:], {}, r"images was 5 \(SHA-256 .*, now it is 4 \("),
        (IMAGES[::-1], {}, r"images was 5 \(SHA-256 .*, now it is 5 \("),
    ],
)
def test_another_command_is_refused(place, images, changes, message):
    prepare(place)
    with pytest.raises(UsageError, match=message) as refused:
        prepare(place, images, overwrite=True, **changes)
    assert "continue" in refused.value.fix


def test_a_run_that_was_killed_while_it_planned_starts_again(place):
    class KilledError(Exception):
        pass

    def killed():
        yield from IMAGES[:3]
        raise KilledError

    with pytest.raises(KilledError):
        prepare(place, killed())
    assert prepare(place).plan.images == 5
    prepare(place)  # the settings are stored now


@pytest.mark.parametrize("name", ["shards/old.parquet", "labels/a/b.png", "plan/x", "overlays/x"])
def test_foreign_files_are_refused(place, name):
    place.write(name, b"precious")
    with pytest.raises(OutputError, match=r"contains 1 files that this run did not write"):
        prepare(place)
    assert place.read(name) == b"precious"
    assert place.read(NAME) is None
    prepare(place, overwrite=True)
    # A reader of shards/ takes every file there; other foreign files stay.
    assert place.read(name) == (None if name.startswith("shards/") else b"precious")
    assert prepare(place, overwrite=True).finished.shards == set()


def test_a_foreign_file_among_finished_shards_is_refused(place):
    output = prepare(place)
    finish(place, output, 0)
    place.write("shards/000000001.parquet", b"not ours")
    with pytest.raises(OutputError, match=r"000000001\.parquet"):
        prepare(place)
    assert prepare(place, overwrite=True).finished.shards == {0}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"settings": 3}', b'{"generator": "other", "schema": 1}']
)
def test_a_foreign_batch_json_is_refused(place, content):
    place.write(NAME, content)
    with pytest.raises(OutputError, match=r"batch\.json"):
        prepare(place)
    prepare(place, overwrite=True)
    assert json.loads(place.read(NAME))["settings"]["model"] == "m"


def hold(folder, ready):
    with locked(Place.of(folder)):
        ready.set()
        time.sleep(60)


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready))
    place = Place.of(str(tmp_path))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UsageError, match="Another process writes"), locked(place):
            pass
        other.kill()  # the lock ends with its process
        other.join()
        with locked(place):
            pass
    finally:
        other.kill()
        other.join()
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_identified_by_its_content(exported, tmp_path):
    model = exported("panoptic")
    assert read_spec(model).task == "panoptic"
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert model_sha256(copy) == model_sha256(model)
    config = BatchConfig(copy, (), "out", backend="onnxruntime")
    settings = settings_of(config, read_spec(copy).thresholds, model_sha256(copy))
    assert settings["backend"] == "onnxruntime"
    assert json.loads(json.dumps(settings)) == settings
    copy.write_bytes(model.read_bytes() + b"x")
    assert model_sha256(copy) != model_sha256(model)
    with pytest.raises(ModelFileError, match="no model at"):
        read_spec(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("shard_size", 0),
        ("shard_size", 10**9),
        ("concurrency", 0),
        ("max_errors", -1),
    ],
)
def test_wrong_numbers_are_refused(name, value):
    with pytest.raises(UsageError, match=f"`{name}` must be at"):
        BatchConfig(model="m.onnx", sources=("x",), output="o", **{name: value})
