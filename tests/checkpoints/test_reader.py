from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from layouts import huggingface_keys
from safetensors.torch import save_file

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.checkpoints.huggingface import download, read_config
from eomt_deploy.checkpoints.shapes import read_architecture
from eomt_deploy.errors import CheckpointError
from eomt_deploy.network.eomt import EoMT


def test_everything_that_shapes_reveal(files):
    checkpoint = read_checkpoint(files.checkpoint)
    assert checkpoint.architecture == tiny.ARCH
    assert checkpoint.native_grid == (4, 4)
    assert checkpoint.attn_mask_probs == (0.0, 0.0)
    assert checkpoint.source_format == "official"
    assert checkpoint.class_names is None
    assert len(checkpoint.sha256) == 64
    model = tiny.network()
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())


def wrapped(state):
    return {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "compiled": {k.replace("network.", "network._orig_mod."): v for k, v in state.items()},
        "distributed": {f"module.{k}": v for k, v in state.items()},
    }


@pytest.mark.parametrize("kind", ["plain", "state_dict", "compiled", "distributed"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_official_files_of_every_kind(tmp_path, kind, suffix):
    model = tiny.network()
    path = tmp_path / f"model{suffix}"
    torch.save(wrapped(tiny.official_keys(model))[kind], path)
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[k], v) for k, v in model.state_dict().items())


def test_safetensors_file_and_one_under_another_name(tmp_path):
    state = {k: v.contiguous() for k, v in tiny.official_keys(tiny.network()).items()}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    disguised = tmp_path / "model.bin"
    shutil.copy(path, disguised)
    assert read_checkpoint(path).architecture == read_checkpoint(disguised).architecture


def test_legacy_torch_format(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(tiny.official_keys(tiny.network()), path, _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture == tiny.ARCH
    before = checkpoint.tensors["q.weight"].clone()
    checkpoint.tensors["q.weight"].zero_()  # as folds do
    checkpoint.tensors.block(0)
    assert torch.equal(checkpoint.tensors["q.weight"], before)


@pytest.mark.shared_data
def test_lightning_checkpoint_and_hf_folder_of_the_official_model(shared):
    folder = shared / "golden/instance_96"
    plain = read_checkpoint(folder / "pytorch_model.bin", heads=2)
    for other in (
        read_checkpoint(folder / "lightning.ckpt", heads=2),
        read_checkpoint(folder / "hf"),
    ):
        assert other.architecture == plain.architecture
        assert other.tensors.keys() == plain.tensors.keys()
        for key, tensor in plain.tensors.items():
            torch.testing.assert_close(other.tensors[key], tensor, rtol=0, atol=1e-7)
    assert read_checkpoint(folder / "hf").class_names[0] == "person"


def test_sharded_folder(tmp_path):
    state = {k: v.contiguous() for k, v in tiny.official_keys(tiny.network()).items()}
    keys = list(state)
    shards = {"model-00001-of-00002.safetensors": keys[:20], "model-00002-of-00002.safetensors": keys[20:]}  # noqa: E501  # fmt: skip
    for name, part in shards.items():
        save_file({k: state[k] for k in part}, tmp_path / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_checkpoint(tmp_path).architecture == tiny.ARCH
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        read_checkpoint(tmp_path)


class Code:
    def __reduce__(self):
        return Path.touch, (Path("code-was-run"),)


def test_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": tiny.official_keys(tiny.network()), "hook": Code()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match="run code"):
        read_checkpoint("evil.ckpt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(CheckpointError):
        read_checkpoint("plain.pkl")
    assert not Path("code-was-run").exists()


def test_damaged_and_foreign_files(tmp_path, files):
    complete = files.checkpoint.read_bytes()
    cases = {
        "cut.bin": (complete[: len(complete) // 2], "is truncated"),
        "empty.bin": (b"", "is empty"),
        "text.bin": (b"hello, this is no checkpoint", "not a PyTorch or safetensors"),
        "photo.bin": (b"\xff\xd8\xff\xe0" + bytes(100), "not a PyTorch or safetensors"),
        "cut.safetensors": (b"\x20\0\0\0\0\0\0\0" + b'{"a": ', "not a complete safetensors"),
    }
    for name, (content, word) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=word):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.bin")
    with pytest.raises(CheckpointError, match="does not contain model"):
        read_checkpoint(tmp_path)


def save(folder: Path, state) -> Path:
    path = folder / "state.bin"
    torch.save(state, path)
    return path


def test_wrong_keys(tmp_path):
    state = tiny.official_keys(tiny.network())
    without = {k: v for k, v in state.items() if "q.weight" not in k}
    for content, word in (
        ({"blocks.0.weight": torch.zeros(2)}, "does not contain an EoMT"),
        ({"epoch": 3}, "must contain named tensors, got dict"),
        ([1, 2], "must contain named tensors, got list"),
        (without, r"missing: q\.weight"),
        (state | {"network.attn_mask_probs": torch.zeros(0)}, "must be between 1 and 3, got 0"),
        (state | {"network.encoder.backbone.reg_token": torch.zeros(5)}, "3 dimensions"),
        (state | {"network.encoder.backbone.pos_embed": torch.zeros(5)}, "3 dimensions"),
        ({k: v for k, v in state.items() if "attn_mask" not in k}, "--num-blocks"),
    ):
        with pytest.raises(CheckpointError, match=word):
            read_checkpoint(save(tmp_path, content))


def test_heads(tmp_path):
    files = tiny.write(tmp_path)
    assert read_checkpoint(files.checkpoint, heads=4).architecture.heads == 4
    with pytest.raises(CheckpointError, match="5 heads"):
        read_checkpoint(files.checkpoint, heads=5)


def test_num_blocks_if_the_file_does_not_contain_it(tmp_path):
    state = tiny.official_keys(tiny.network())
    del state["network.attn_mask_probs"]
    checkpoint = read_checkpoint(save(tmp_path, state), num_blocks=2)
    assert checkpoint.architecture == tiny.ARCH
    assert checkpoint.attn_mask_probs is None


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "mask2former"}', "mask2former"),
        ("[]", "cannot be read"),
        ('{"image_size": [96]}', r"image_size is \[96\]"),
        ('{"image_size": "96x96"}', "image_size"),
        ('{"num_attention_heads": "2"}', "num_attention_heads"),
        ('{"layer_norm_eps": null}', "layer_norm_eps is null"),
        ('{"hidden_act": "relu"}', "relu"),
        ('{"id2label": {"a": "sky"}}', "id2label"),
    ],
)
def test_config_that_is_not_ours(tmp_path, config, word):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "a", "1": "b", "2": "c"},
        {"2": "c", "0": "a", "1": "b"},
        {"00": "a", "01": "b", "02": "c"},
        {"02": "c", "1": "b", "000": "a"},
    ],
)
def test_names_are_read_by_their_number(tmp_path, labels):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    assert read_config(tmp_path).class_names == ("a", "b", "c")


def test_names_of_more_than_ten_classes(tmp_path):
    """If sorted as text, 10 would come before 2."""
    names = {str(i): f"class {i}" for i in sorted(range(30), key=str)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    assert read_config(tmp_path).class_names == tuple(f"class {i}" for i in range(30))


def test_pickled_shards(tmp_path):
    state = huggingface_keys(tiny.network())
    keys = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": keys[:20], "pytorch_model-00002-of-00002.bin": keys[20:]}  # noqa: E501  # fmt: skip
    for name, part in shards.items():
        torch.save({k: state[k] for k in part}, tmp_path / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8-sig")
    assert read_checkpoint(tmp_path).architecture == tiny.ARCH
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model-00002-of-00002"):
        read_checkpoint(tmp_path)


def test_download_without_network_says_so(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"cannot be downloaded(.|\n)*local folder"):
        download("tue-mps/coco_panoptic_eomt_large_640")


def test_download_takes_what_the_cache_holds(monkeypatch, tmp_path):
    """The Hugging Face cache layout after a complete download."""
    import huggingface_hub

    repository = tmp_path / "models--owner--tiny"
    commit = "0123456789" * 4
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    state = {k: v.contiguous() for k, v in tiny.official_keys(tiny.network()).items()}
    save_file(state, snapshot / "model.safetensors")
    real = huggingface_hub.snapshot_download

    def offline(*args, **kwargs):
        return real(*args, cache_dir=tmp_path, local_files_only=True, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for name in ("hf://owner/tiny", "hf://owner/tiny@main", f"hf://owner/tiny@{commit}"):
        checkpoint = read_checkpoint(name)
        assert (checkpoint.architecture, checkpoint.revision) == (tiny.ARCH, commit)
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        read_checkpoint("hf://owner/tiny@another")


@pytest.mark.parametrize(("width", "heads"), [(1536, 24), (4096, 32)])
def test_heads_of_the_published_sizes(width, heads):
    """64 channels each, except 128 in the 7B model."""
    arch = replace(tiny.ARCH, width=width, heads=heads)
    with torch.device("meta"):
        state = EoMT(arch, tiny.SIZE).state_dict()
    found = read_architecture(state, num_blocks=2, heads=None, norm_eps=1e-6)
    assert found.heads == heads
