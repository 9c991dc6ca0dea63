"""Checkpoints: zips and pickles, state dicts, safetensors, Hugging Face folders."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from . import container_mutations as containers
from . import seed_weights
from .contract import lot
from .mutations import Files, Mutator


def run_checkpoint(path: Path, folder: Path) -> None:
    from eomt_deploy.checkpoints import read_checkpoint
    from eomt_deploy.exporting.network import build_network

    checkpoint = read_checkpoint(path, heads=1)
    repr(checkpoint.architecture), checkpoint.parameters, checkpoint.bytes
    if lot(folder, 3):
        build_network(checkpoint, seed_weights.SIZE)


def saved(content: Any, *, legacy: bool = False) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@cache
def checkpoint_seeds() -> list[bytes]:
    found = [saved(content) for content in seed_weights.checkpoints()]
    return [*found, saved(seed_weights.official(), legacy=True)]


def checkpoint_files() -> list[Files]:
    return [{"c.pt": data} for data in checkpoint_seeds()]


def checkpoint_entries(data: bytes) -> list[containers.Entry]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [containers.entry(name, archive.read(name)) for name in archive.namelist()]


@cache
def cached_entries() -> list[list[containers.Entry]]:
    return [checkpoint_entries(data) for data in checkpoint_seeds()[:4]]


def mutate_checkpoint_zip(m: Mutator) -> Files:
    if m.chance(0.1):
        complete = m.rng.choice(checkpoint_seeds())
        return {"c.pt": m.bytes(complete, checkpoint_seeds())}
    entries = list(m.rng.choice(cached_entries()))
    if m.chance(0.55):
        at = next(i for i, e in enumerate(entries) if e.name.endswith(b"data.pkl"))
        changed = containers.mutate_pickle(m, entries[at].packed)
        entries[at] = containers.entry(entries[at].name.decode(), changed)
        return {"c.pt": containers.write_zip(entries)}
    return {"c.pt": containers.mutate_zip(m, entries)}


def odd_tensor(m: Mutator, tensor: Any) -> Any:
    """A tensor of another type, shape, layout or value."""
    import torch

    makers: list[Callable[[], Any]] = [
        lambda: tensor.half(), lambda: tensor.bfloat16(), lambda: tensor.double(),
        lambda: tensor.to(torch.complex64), lambda: tensor.to(torch.int8), lambda: tensor > 0,
        lambda: tensor.reshape(-1), lambda: tensor[:0], lambda: tensor.unsqueeze(0),
        lambda: tensor.T if tensor.ndim == 2 else tensor, lambda: torch.zeros(()),
        lambda: torch.zeros(1).expand(30_000, 30_000), lambda: torch.zeros(1).expand(2**40),
        lambda: torch.zeros(1).expand(*tensor.shape), lambda: tensor * float("nan"),
        lambda: tensor * float("inf"), lambda: tensor.to_sparse(), lambda: torch.zeros(0),
        lambda: tensor.to("meta"), lambda: torch.nn.Parameter(tensor.clone()),
        lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda: torch.zeros(tensor.shape, dtype=torch.float8_e4m3fn),
        lambda: tensor[..., ::2], lambda: torch.zeros([1] * 60), lambda: torch.cat([tensor,
        tensor]),
        lambda: tensor.conj() if tensor.is_complex() else tensor.to(torch.complex64).conj(),
    ]  # fmt: skip
    try:
        return m.rng.choice(makers)()
    except (RuntimeError, NotImplementedError, IndexError):
        return tensor


CONTAINERS = ("state_dict", "model", "train_model", "module", "net", "weights", "ema_state_dict",
              "state_dict_ema", "model_ema", "optimizer", "x")  # fmt: skip


def mutate_checkpoint_keys(m: Mutator) -> Files:
    content = m.rng.choice(seed_weights.checkpoints())
    nested = next((k for k in ("state_dict", "train_model", "model") if k in content), None)
    state: dict[Any, Any] = dict(content[nested] if nested else content)
    for _ in range(m.rng.choice((1, 1, 1, 2, 4))):
        key = m.rng.choice(list(state))
        kind = m.rng.choice(("tensor", "tensor", "tensor", "rename", "rename", "drop", "prefix",
                             "value", "key", "many"))  # fmt: skip
        m.note(f"{kind} of {str(key)[:60]}")
        if kind == "tensor" and hasattr(state[key], "shape"):
            state[key] = odd_tensor(m, state[key])
            m.note(f"{tuple(state[key].shape)} {state[key].dtype}")
        elif kind == "rename":
            state[containers.odd_key(m, str(key))] = state.pop(key)
        elif kind == "drop" and len(state) > 1:
            del state[key]
        elif kind == "prefix":
            prefix = m.rng.choice(("module.", "_orig_mod.", "model.", "ema_model.module.", "a.b."))
            state = {prefix + str(k): v for k, v in state.items()}
        elif kind == "value":
            state[key] = m.rng.choice(
                (None, 1, "x", [], {}, {"a": state[key]}, (state[key],), b"x")
            )
        elif kind == "key":
            state[m.rng.choice((0, None, (1, 2), b"x", 1.5, True, "\ud800"))] = state[key]
        elif kind == "many":
            state |= {f"network.x.{i}": state[key] for i in range(300)}
    complete: Any = {**content, nested: state} if nested else state
    if nested == "train_model" and m.chance(0.5):
        arguments = dict(content["model_init_args"])
        name = m.rng.choice(list(arguments))
        arguments[name] = m.value(arguments[name] if name != "image_normalize" else None)
        m.note(f"{name} = {repr(arguments[name])[:50]}")
        complete["model_init_args"] = arguments
    if m.chance(0.25):
        names = m.rng.sample(CONTAINERS, m.rng.randint(1, 3))
        for name in names:
            complete = {name: complete, "epoch": 3}
        if m.chance(0.3):
            complete[m.rng.choice(CONTAINERS)] = m.rng.choice(({}, None, state, 5))
        m.note(f"inside {names}")
    if m.chance(0.02):
        for _ in range(200):
            complete = {"state_dict": complete}
    try:
        return {"c.pt": saved(complete, legacy=m.chance(0.1))}
    except Exception:  # torch itself does not save some of these
        return {"c.pt": saved({str(k): v for k, v in seed_weights.official().items()})[:-20]}


def run_checkpoint_file(folder: Path) -> None:
    run_checkpoint(next(folder.iterdir()), folder)


def safetensors_files() -> list[Files]:
    return [
        {"m.safetensors": folder["model.safetensors"]}
        for folder in seed_weights.huggingface_folders()[:1]
    ]


def mutate_safetensors(m: Mutator) -> Files:
    complete = safetensors_files()[0]["m.safetensors"]
    name = m.rng.choice(("m.safetensors", "m.safetensors", "m.bin"))
    return {name: containers.mutate_safetensors(m, complete, [complete])}


def mutate_huggingface(m: Mutator) -> Files:
    files = dict(m.rng.choice(seed_weights.huggingface_folders()))
    name = m.rng.choice([n for n in files if n.endswith(".json")] * 4 + list(files))
    if name.endswith(".json"):
        files[name] = m.json(files[name])
    elif m.chance(0.3):
        del files[name]
    else:
        files[name] = containers.mutate_safetensors(m, files[name], [files[name]])
    if m.chance(0.05):
        files["pytorch_model.bin"] = m.rng.choice((b"", b"x", files.pop("config.json", b"y")))
    return files


def run_folder_checkpoint(folder: Path) -> None:
    run_checkpoint(folder, folder)
