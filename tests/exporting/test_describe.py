"""The description agrees with the checkpoint, and the user is warned about contradictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.devices import Gpu
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting import ExportConfig, describe
from eomt_deploy.exporting.reference import TorchEngine
from eomt_deploy.model_file import read_model_file

NAMES = [c["name"] for c in tiny.CLASSES]


def described(files, **changes):
    """The spec and the warnings of an export, without the export itself."""
    config = ExportConfig(str(files.checkpoint), Path("m.onnx"), classes=files.classes)
    return described_by(replace(config, **({"task": "panoptic"} | changes)))


def described_by(config):
    source = describe.find_source(config)
    checkpoint = read_checkpoint(source.location, weights_key=config.weights_key)
    spec = describe.describe(config, source, checkpoint)
    return spec, describe.warnings(config, source, checkpoint, spec)


@pytest.mark.parametrize("size", [(48, 96), (128, 32)])
def test_sizes_far_from_the_trained_one(files, size):
    spec, notes = described(files, size=size)
    assert spec.image_size == size
    assert any("far from the trained size 64x64" in note for note in notes)


def test_another_task_than_in_the_catalog():
    config = ExportConfig("eomt-tiny-scenes", Path("m.onnx"), task="semantic")
    spec, notes = described_by(config)
    wanted = "trained for panoptic segmentation, but is exported for semantic segmentation"
    assert any(wanted in note for note in notes)
    assert spec.name == "m"


def class_list(folder, things):
    path = folder / "list.json"
    entries = [{"name": n, "thing": t} for n, t in zip(NAMES, things, strict=True)]
    path.write_text(json.dumps(entries))
    return path


def test_panoptic_without_things_or_without_stuff(files, tmp_path):
    _, notes = described(files)
    assert notes == []
    _, notes = described(files, classes=class_list(tmp_path, [False] * 5))
    assert len(notes) == 1
    assert "None of the 5 classes is a thing" in notes[0]
    assert "--task semantic" in notes[0]
    _, notes = described(files, classes=class_list(tmp_path, [True] * 5))
    assert "None of the 5 classes is stuff" in notes[0]
    assert "--task instance" in notes[0]


@pytest.mark.parametrize(
    ("precision", "capability", "count"),
    [("int8", "9.0", 1), ("int8", "8.9", 0), ("int8", None, 0), ("fp8", "9.0", 0)],
)
def test_int8_for_a_gpu_where_it_is_slow(files, monkeypatch, precision, capability, count):
    gpu = capability and Gpu("a GPU", capability, None)
    monkeypatch.setattr(describe, "current_gpu", lambda: gpu)
    _, notes = described(files, precision=precision, calibrate=Path())
    assert len(notes) == count
    assert all("INT8 is slower than FP16" in note and "--precision fp8" in note for note in notes)


def test_semantic_takes_any_list(files, tmp_path):
    for things in ([False] * 5, [True] * 5, [True, False, True, False, True]):
        path = class_list(tmp_path, things)
        assert described(files, task="semantic", classes=path)[1] == []


def test_stuff_in_an_instance_model(files, tmp_path):
    with pytest.raises(UsageError, match=r"2 of the 5 classes are stuff: sky, grass") as caught:
        described(files, task="instance")
    assert "--allow-stuff" in caught.value.fix
    spec, notes = described(files, task="instance", allow_stuff=True)
    assert [info.thing for info in spec.classes] == [c["thing"] for c in tiny.CLASSES]
    assert spec.provenance["stuff_in_instance"] == "allowed"
    assert notes == ["2 of the 5 classes are stuff (allowed by --allow-stuff)."]
    spec, notes = described(files, task="instance", classes=class_list(tmp_path, [True] * 5))
    assert (notes, "stuff_in_instance" in spec.provenance) == ([], False)


def test_allow_stuff_is_for_instance_models(files):
    with pytest.raises(UsageError, match="has no effect on a panoptic model"):
        described(files, allow_stuff=True)
    with pytest.raises(UsageError, match="has no effect on a panoptic model"):
        described(tiny.Files(Path("eomt-tiny-scenes"), None), task=None, allow_stuff=True)


def test_the_catalogs_own_tasks_are_allowed(files):
    spec, notes = described(tiny.Files(Path("eomt-tiny-scenes"), None), task=None)
    assert (spec.task, notes) == ("panoptic", [])
    with pytest.raises(UsageError, match="classes are stuff"):
        described(tiny.Files(Path("eomt-tiny-scenes"), None), task="instance")


def test_class_lists_as_users_write_them(files, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(NAMES))
    spec, _ = described(files, task="semantic", classes=path)
    assert [(info.name, info.thing) for info in spec.classes] == [(n, False) for n in NAMES]
    spec, _ = described(files, task="instance", classes=path)
    assert all(info.thing for info in spec.classes)
    with pytest.raises(UsageError, match='has no "thing"'):
        described(files, classes=path)
    categories = [{"id": 10 - i, "name": n, "isthing": i % 2} for i, n in enumerate(NAMES)]
    path.write_text(json.dumps({"categories": categories}), "utf-16")
    spec, notes = described(files, classes=path)
    assert [info.name for info in spec.classes] == NAMES[::-1]
    assert any("have the ids 6 to 10; they are numbered 0 to 4 in this order" in n
               for n in notes)  # fmt: skip


def pair(folder):
    """A checkpoint whose EMA weights predict other classes than its last weights."""
    raw = tiny.official_keys(tiny.network())
    average = raw | {"network.class_head.weight": -raw["network.class_head.weight"]}
    path = folder / "last.ckpt"
    torch.save({"state_dict": raw, "state_dict_ema": average}, path)
    return path


def test_the_weights_that_were_taken_are_in_the_provenance(files, tmp_path):
    both = tiny.Files(pair(tmp_path), files.classes)
    spec, notes = described(both)
    assert spec.provenance["weights_key"] == "state_dict_ema"
    assert any("under state_dict_ema are used" in note for note in notes)
    spec, notes = described(both, weights_key="state_dict")
    assert spec.provenance["weights_key"] == "state_dict"
    assert any("under state_dict are used" in note for note in notes)
    with pytest.raises(CheckpointError, match="state_dict, state_dict_ema"):
        described(both, weights_key="ema")
    spec, notes = described(files)
    assert not {"weights_key", "stripped_from_keys", "checkpoint_revision"} & set(spec.provenance)


def test_what_was_stripped_is_in_the_provenance(files, tmp_path):
    path = tmp_path / "last.ckpt"
    state = {f"module.model.{k}": v for k, v in tiny.official_keys(tiny.network()).items()}
    torch.save(state, path)
    spec, notes = described(tiny.Files(path, files.classes))
    assert spec.provenance["stripped_from_keys"] == "the prefix module.model"
    assert notes == ["The keys of the weights are read without the prefix module.model."]


def test_the_commit_of_a_repository_is_in_the_provenance(files, tmp_path, monkeypatch):
    """The Hugging Face cache layout after a complete download."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    repository = tmp_path / "models--owner--tiny"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    torch.save(tiny.official_keys(tiny.network()), folder / "pytorch_model.bin")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1.0").write_text(commit)
    spec, _ = described(tiny.Files("hf://owner/tiny@v1.0", files.classes))
    assert spec.provenance["checkpoint_revision"] == commit
    for wrong, word in (("", "''"), ("@", "''"), ("@a b", "'a b'"), ("@main", "downloaded")):
        with pytest.raises(CheckpointError, match=word if wrong else "cannot be downloaded"):
            described(tiny.Files(f"hf://owner/tiny{wrong}", files.classes))


def test_a_comparison_takes_the_weights_of_the_export(files, tmp_path, image_path, cli):
    checkpoint, model = pair(tmp_path), tmp_path / "m.onnx"
    export = ("export", checkpoint, "--task", "semantic", "--classes", files.classes, "-o", model)
    compare = ("compare", model, checkpoint, image_path, "--tolerance", "1")
    code, _, err = cli(*export, "--weights-key", "state_dict")
    assert code == 0
    assert "warning: The file contains several copies of the network." in err
    assert "state_dict_ema" in err
    assert read_model_file(model).spec.provenance["weights_key"] == "state_dict"
    code, _, err = cli(*compare)
    assert code == 0
    assert "under state_dict are used" in err
    assert cli(*compare, "--weights-key", "state_dict_ema")[0] == 4
    code, _, err = cli(*compare, "--weights-key", "nothing")
    assert code == 2
    assert "state_dict, state_dict_ema" in err
    # Another checkpoint may have other dictionaries.
    engine = TorchEngine(files.checkpoint, read_model_file(model).spec)
    assert engine.notes == ()
    code, _, err = cli("compare", model, model, image_path, "--weights-key", "state_dict")
    assert code == 2
    assert "--weights-key has no effect here" in err


def test_the_licence_is_a_warning_and_in_the_provenance(files):
    name = "coco-instance-eomt-small-640-lightly"
    spec, notes = described(files, name=name, size=(64, 64))
    assert spec.provenance["licence"] == "LightlyTrain (AGPL-3.0 or commercial), DINOv3 License"
    assert [note.split(":")[0] for note in notes[:2]] == [f"Licence of {name}"] * 2
    spec, notes = described(files)
    assert "licence" not in spec.provenance
