"""Files that no trainer wrote: each is rejected quickly, before it takes much memory."""

from __future__ import annotations

import gc
import json
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from eomt_deploy.checkpoints import read_checkpoint, tensor_files
from eomt_deploy.checkpoints.pickles import MAX_NESTING
from eomt_deploy.errors import CheckpointError

SECONDS = 2.0
"""CPU time of this thread; most files take a hundredth of it."""


@pytest.fixture(autouse=True)
def quickly():
    """Without collections of the garbage of other tests, which can take a second."""
    gc.disable()
    start = time.thread_time()
    yield
    seconds = time.thread_time() - start
    gc.enable()
    assert seconds < SECONDS


@pytest.fixture
def unopened(monkeypatch):
    """The file must not be loaded."""
    monkeypatch.setattr(
        tensor_files.torch, "load", lambda *a, **k: pytest.fail("the file was loaded")
    )


def archive(path: Path, content: bytes, *, legacy: bool = False) -> Path:
    """A file of torch.save that contains the pickle ``content``."""
    if legacy:
        numbers = [0x1950A86A20F9469CFC6C, 1001, {}]
        path.write_bytes(b"".join(pickle.dumps(n, 2) for n in numbers) + content)
        return path
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        entries = [(e, old.read(e)) for e in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in entries:
            new.writestr(entry.filename, content if entry.filename.endswith("data.pkl") else data)
    return path


NESTED = {
    # Hashing the key would overflow the stack and crash the process.
    "tuples": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "dictionaries": b"\x80\x02" + b"}" + b"K\x01}" * 50_000 + b"s" * 50_000 + b".",
    "through the memo": b"\x80\x02)q\x00"
    + b"".join(b"h" + bytes([i]) + b"\x85q" + bytes([i + 1]) for i in range(200))
    + b".",
    "marks": b"\x80\x02" + b"(" * 200_000 + b")" + b"t" * 200_000 + b".",
}


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("content", NESTED.values(), ids=NESTED)
def test_deep_pickles(tmp_path, unopened, content, legacy):
    path = archive(tmp_path / "x.pt", content, legacy=legacy)
    with pytest.raises(CheckpointError, match=f"nested more than {MAX_NESTING} levels"):
        read_checkpoint(path)


def test_settings_may_nest(tmp_path):
    settings: object = torch.zeros(2)
    for _ in range(30):
        settings = {"a": [settings]}
    content = {"hyper_parameters": settings, "state_dict": tiny.official_keys(tiny.network())}
    content["me"] = content  # a checkpoint that contains itself
    torch.save(content, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").architecture == tiny.ARCH


def test_gigabytes_from_a_few_bytes(tmp_path, unopened):
    content = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."
    with pytest.raises(CheckpointError, match="creates a bytearray"):
        read_checkpoint(archive(tmp_path / "x.pt", content))


def test_compressed_archives(tmp_path, unopened):
    path, bomb = tmp_path / "x.pt", tmp_path / "bomb.pt"
    torch.save(tiny.official_keys(tiny.network()), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(
                entry.filename, old.read(entry) + bytes(10_000_000) * ("/7" in entry.filename)
            )
    assert bomb.stat().st_size < path.stat().st_size
    with pytest.raises(CheckpointError, match=r"data\.pkl' is compressed"):
        read_checkpoint(bomb)


def test_archives_that_declare_more_than_they_hold(tmp_path, unopened):
    path = tmp_path / "x.pt"
    torch.save(tiny.official_keys(tiny.network()), path)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    for offset in (20, 24):  # compressed and plain size in the directory
        struct.pack_into("<I", content, place + offset, 0xFFFFFF00)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"declare 4,29\d,\d{3},\d{3} bytes"):
        read_checkpoint(path)


def damaged(key, value):
    state = tiny.official_keys(tiny.network())
    return state | {f"network.{key}": value}


WRONG = {
    "more than the file": ("q.weight", torch.zeros(1, 64).expand(10**9, 64), "claim"),
    "empty": ("q.weight", torch.zeros(0, 64), r"q\.weight has shape \[0, 64\], which is empty"),
    "no width": ("q.weight", torch.zeros(12, 0), "which is empty"),
    "other width": ("class_head.weight", torch.zeros(6, 32), "expected 64 values each"),
    "no class": ("class_head.weight", torch.zeros(1, 64), "none for a class"),
    "a number": ("encoder.backbone.patch_embed.proj.weight", torch.tensor(1.0), "dimensions"),
    "no patch": ("encoder.backbone.patch_embed.proj.weight", torch.zeros(64, 3, 0, 0), "empty"),
    "far block": ("encoder.backbone.blocks.999999999.norm1.weight", torch.zeros(64), "gaps"),
    "gap": ("encoder.backbone.blocks.4.norm1.weight", torch.zeros(64), "without gaps"),
    "far step": ("upscale.1000000000000.conv1.weight", torch.zeros(64), "without gaps"),
    "absurd block": (f"encoder.backbone.blocks.{'9' * 400}.norm1.weight", torch.zeros(1), "gaps"),
    "probabilities": ("attn_mask_probs", torch.zeros(2, 2), r"shape \[2, 2\]"),
    "no values": ("q.weight", torch.zeros(12, 64, device="meta"), "has no values"),
    "sparse": ("q.weight", torch.zeros(12, 64).to_sparse(), "sparse"),
    "complex": ("q.weight", torch.zeros(12, 64, dtype=torch.complex64), "its type is complex64"),
    "fp8": ("q.weight", torch.zeros(12, 64).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "whole numbers": ("q.weight", torch.zeros(12, 64, dtype=torch.int8), "its type is int8"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "word"), WRONG.values(), ids=WRONG)
def test_tensors_that_fit_no_network(tmp_path, key, value, word):
    torch.save(damaged(key, value), tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(tmp_path / "x.bin")


def test_more_blocks_than_any_network(tmp_path):
    blocks = {f"encoder.backbone.blocks.{i}.norm1.weight": torch.zeros(1) for i in range(600)}
    state = damaged("x", torch.zeros(1)) | {f"network.{k}": v for k, v in blocks.items()}
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="600 different numbers"):
        read_checkpoint(tmp_path / "x.bin")


def test_names_of_a_file_are_shown_on_one_line(tmp_path):
    torch.save({"a\nb\x1b[31m\ud800": torch.zeros(2), "x" * 400: torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "x.pt")
    assert r"a\nb\x1b[31m\ud800" in caught.value.why
    assert len(caught.value.why) < 300


HEADERS = {
    "longer than the file": struct.pack("<Q", 1 << 40) + b'{"a":',
    "as long as can be": b"\xff" * 8 + b"{}",
    "deep": (deep := b'{"a":' * 100_000) and struct.pack("<Q", len(deep)) + deep,
    "absurd shape": (
        absurd := b'{"q.weight":{"dtype":"F32","shape":[1000000000000,64],"data_offsets":[0,4]}}'
    )
    and struct.pack("<Q", len(absurd)) + absurd + bytes(4),
    "overflow": (
        over := b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    )
    and struct.pack("<Q", len(over)) + over,
    "a number": struct.pack("<Q", 2) + b"{5",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_safetensors_headers(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_checkpoint(tmp_path / "x.safetensors")


def folder(path: Path) -> Path:
    """A Hugging Face model folder."""
    path.mkdir()
    state = {k: v.contiguous() for k, v in tiny.official_keys(tiny.network()).items()}
    save_file(state, path / "model.safetensors")
    return path


DEEP = "[" * 10_000 + "]" * 10_000
INDEXES = {
    "a number for a file": {"weight_map": {"a": 5}},
    "null": {"weight_map": {"a": None}},
    "a list": {"weight_map": {"a": ["model.safetensors"]}},
    "numbers and names": {"weight_map": {"a": 5, "b": "model.safetensors"}},
    "no files": {"weight_map": {}},
    "no map": {"weight_map": ["model.safetensors"]},
    "not an object": [1, 2],
    "above": {"weight_map": {"a": "../secret.safetensors"}},
    "below": {"weight_map": {"a": "x/../../secret.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "drive": {"weight_map": {"a": "C:secret.safetensors"}},
    "backslash": {"weight_map": {"a": "..\\secret.safetensors"}},
    "the folder": {"weight_map": {"a": ".."}},
    "no name": {"weight_map": {"a": ""}},
    "null byte": {"weight_map": {"a": "model\0.safetensors"}},
}


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_indexes_of_shards(tmp_path, index, name):
    place = folder(tmp_path / "hf")
    (place / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (place / name).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index"):
        read_checkpoint(place)


UNREADABLE = {"deep": DEEP, "cut": "{", "bytes": '{"\xff\xfe', "huge": " " * 20_000_000}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_read(tmp_path, name, text):
    place = folder(tmp_path / "hf")
    (place / name).write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        read_checkpoint(place)


CONFIGS = [
    {"rope_parameters": [1]},
    {"rope_theta": "100"},
    {"rope_parameters": {"rope_type": "yarn"}},
    {"rope_theta": 10**400},
    {"image_size": 10**9},
    {"image_size": [640, -1]},
    {"image_size": True},
    {"num_attention_heads": 10**30},
    {"layer_norm_eps": 2.5},
    {"hidden_act": {"a": 1}},
    {"id2label": [1]},
    {"id2label": {"0": 5}},
    {"id2label": {"0": "a", "2": "b"}},
    {"id2label": {"0": "a", "00": "b"}},
    {"id2label": {"1": "a", "2": "b"}},
    {"id2label": {"9" * 5000: "a"}},
    {"id2label": {"-1": "a"}},
    {"model_type": ["eomt"]},
    {"model_type": {}},
]


@pytest.mark.parametrize("config", CONFIGS, ids=[json.dumps(c)[:40] for c in CONFIGS])
def test_settings_of_wrong_types(tmp_path, config):
    place = folder(tmp_path / "hf")
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=next(iter(config))):
        read_checkpoint(place)


@pytest.mark.shared_data
def test_index_with_a_number_for_a_file(shared, cli, tmp_path):
    place = shared / "cases/checkpoints/hf_int"
    with pytest.raises(CheckpointError, match="it lists 5"):
        read_checkpoint(place)
    code, _, err = cli("export", place, "-o", tmp_path / "m.onnx", "--task", "semantic")
    assert code == 2
    assert "it lists 5" in err
