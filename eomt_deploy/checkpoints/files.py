"""Read tensors from files without ever running code that is in them.

Weights may be larger than the memory: files are mapped, and opened anew for every :meth:`read
<WeightFiles.read>`, so that what is dropped takes no memory.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eomt_deploy.errors import CheckpointError

SAFETENSORS_SUFFIX = ".safetensors"
# Where trainers put the weights inside a larger dictionary.
CONTAINERS = ("state_dict", "model", "train_model")


class WeightFiles:
    """The named tensors of some weight files.

    Args:
        paths: later files win where two have the same name.

    Attributes:
        shapes: every tensor on the meta device: type and shape without values.

    Raises:
        CheckpointError: unreadable, truncated, not a checkpoint, or with code inside.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, Tensor] = {}
        self._place: dict[str, Path] = {}
        self._held: dict[Path, dict[str, Tensor]] = {}
        for path in paths:
            tensors = _read_tensors(path)
            if not _is_mapped(path):
                self._held[path] = tensors
            self._place |= dict.fromkeys(tensors, path)
            self.shapes |= {name: tensor.to("meta") for name, tensor in tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; their values are read when they are used."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self._place[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, some in wanted.items():
            held = self._held.get(path)
            tensors = held or _read_tensors(path)
            # Whoever gets a tensor may change it; what is held is the only copy.
            found |= {name: tensors[name].clone() if held else tensors[name] for name in some}
        return found

    def entry(self, name: str) -> object:
        """What else a PyTorch file holds under ``name``; None where nothing does."""
        for path in self.paths:
            content = None if _is_safetensors(path) else _load_torch(path)
            if isinstance(content, dict) and name in content:
                return content[name]
        return None


def _is_mapped(path: Path) -> bool:
    return _is_safetensors(path) or zipfile.is_zipfile(path)


def _is_safetensors(path: Path) -> bool:
    # The name lies more often than the bytes: safetensors starts with a length and '{'.
    with path.open("rb") as file:
        return path.suffix == SAFETENSORS_SUFFIX or file.read(9)[8:] == b"{"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty.", fix="Download or copy it again.")
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if _is_safetensors(path):
        return _read_safetensors(path)
    if magic == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is cut off: it starts as a PyTorch file but its end is missing "
            f"({path.stat().st_size:,} bytes are here).",
            fix="Download or copy it again.",
        )
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.",
            fix="Download or copy it again.",
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    return _flat_tensors(path, _load_torch(path))


def _load_torch(path: Path) -> object:
    try:
        content: object = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        # torch's own text advises to load it all the same; only the culprit's name is of use.
        if culprit := re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error)):
            raise CheckpointError(
                f"{path} holds more than tensors, and reading that would run code from it.",
                why=f"It refers to {culprit[1] or culprit[2]}.",
                fix="If you trust it, keep only the weights: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt').",
            ) from error
        raise _not_a_checkpoint(path, "its bytes are no tensors") from error
    except Exception as error:  # damaged bytes fail anywhere inside torch, in any way
        raise _not_a_checkpoint(path, str(error)) from error
    return content


def _flat_tensors(path: Path, content: object) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next((content[c] for c in CONTAINERS if isinstance(content.get(c), dict)), None)
        if inner is None:
            tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        content = inner
    raise CheckpointError(
        f"{path} holds no named tensors (found: {type(content).__name__}).",
        fix="Pass the file with the state dict of a trained EoMT.",
    )


def _not_a_checkpoint(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a PyTorch or safetensors checkpoint, or it is damaged.",
        why=why.strip().partition("\n")[0],
        fix="Pass an official .bin/.pt/.ckpt file, a .safetensors file or a Hugging Face folder.",
    )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face model folder, shards in order.

    Raises:
        CheckpointError: the folder has none, or its index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} cannot be read: {error}.") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks weight files that its index names: {', '.join(missing)}.",
                fix="Download the folder again.",
            )
        return [folder / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(
        f"{folder} has no model.safetensors or pytorch_model.bin.",
        fix="Pass a Hugging Face model folder, or the weight file itself.",
    )


def sha256(paths: Sequence[Path]) -> str:
    """Digest of the bytes of all files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
