"""Reading of tensors from files, without running code from them.

Weights can be larger than the memory: files are memory-mapped, and opened again for each
:meth:`read <WeightFiles.read>`, so that unused tensors do not take memory.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eomt_deploy.checkpoints.pickles import check_torch_file
from eomt_deploy.checkpoints.prefixes import printable
from eomt_deploy.errors import CheckpointError

SAFETENSORS_SUFFIX = ".safetensors"
MAX_NESTING = 8
"""Maximum depth of dictionaries and lists that are searched for tensors."""
MAX_KEY = 500
"""Maximum number of characters of a key; weights do not have longer ones."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class WeightFiles:
    """The tensors of one or more weight files.

    A name includes the keys of all dictionaries around the tensor, e.g.
    ``state_dict.network.q.weight``.

    Args:
        paths: weight files. If two contain the same name, the later file is used.

    Attributes:
        shapes: all usable tensors on the meta device: type and shape without values.
        containers: keys of the dictionaries around each tensor.
        unusable: tensors that do not contain plain numbers (e.g. sparse or quantised), with the
            reason.
        size: total size of the files in bytes.

    Raises:
        CheckpointError: a file is unreadable, truncated, not a checkpoint, or would run code.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, Tensor] = {}
        self.containers: dict[str, tuple[str, ...]] = {}
        self.unusable: dict[str, str] = {}
        self.size = 0
        self._place: dict[str, Path] = {}
        self._held: dict[Path, dict[str, Tensor]] = {}
        for path in paths:
            self.size += _check_file(path)
            found = _read_tensors(path)
            if not _is_mapped(path):
                self._held[path] = {name: tensor for name, (_, tensor) in found.items()}
            for name, (container, tensor) in found.items():
                self._place[name] = path
                self.containers[name] = container
                if why := _unusable(tensor):
                    self.unusable[name] = why
                else:
                    self.shapes[name] = tensor.to("meta")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; their values are loaded lazily."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self._place[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, some in wanted.items():
            if held := self._held.get(path):
                # Clone, because the caller may change the tensors, and these are the only copy.
                found |= {name: held[name].clone() for name in some}
            else:
                tensors = _read_tensors(path)
                found |= {name: tensors[name][1] for name in some}
        return found

    def entry(self, name: str, around: Sequence[str] = ()) -> object:
        """An entry of a PyTorch file that is not a tensor; None if there is none.

        Args:
            name: key of the entry.
            around: keys of nested dictionaries, which are searched after the top level.
        """
        for path in self.paths:
            content = None if _is_safetensors(path) else _load_torch(path)
            for key in ("", *around):
                content = content.get(key) if key and isinstance(content, dict) else content
                if isinstance(content, dict) and name in content:
                    return content[name]
        return None


def _is_mapped(path: Path) -> bool:
    return _is_safetensors(path) or zipfile.is_zipfile(path)


def _is_safetensors(path: Path) -> bool:
    # File names can be wrong. The format starts with a length of 8 bytes and '{'.
    with path.open("rb") as file:
        return path.suffix == SAFETENSORS_SUFFIX or file.read(9)[8:] == b"{"


def _check_file(path: Path) -> int:
    """Check that a file is a weight file before it is opened as one; return its size in bytes."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path} is empty.", fix="Download or copy it again.")
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    if _is_safetensors(path):
        return size
    if magic == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is truncated: it starts like a PyTorch file, but its end is missing (it has "
            f"{size:,} bytes).",
            fix="Download or copy it again.",
        )
    try:
        check_torch_file(path)
    except Exception as error:  # damaged archives fail anywhere inside zipfile
        raise _not_a_checkpoint(path, str(error)) from error
    return size


def _read_tensors(path: Path) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Tensors by their full names, each with the keys of the dictionaries around it."""
    if _is_safetensors(path):
        tensors = _read_safetensors(path)
        return {name: ((), tensor) for name, tensor in tensors.items() if len(name) <= MAX_KEY}
    content = _load_torch(path)
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    for container, key, tensor in _walk(content):
        name = ".".join((*container, key))
        if name in found:
            raise CheckpointError(
                f"{path} contains two tensors with the name {printable(name)}.",
                fix="Save the state dict alone: torch.save(model.state_dict(), path).",
            )
        found[name] = container, tensor
    if not found:
        raise CheckpointError(
            f"{path} must contain named tensors, got {type(content).__name__} without any.",
            fix="Pass the file with the state dict of a trained EoMT.",
        )
    return found


def _walk(content: object) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    """All tensors in nested dictionaries and lists; shared containers are visited only once."""
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    seen = set()
    while waiting:
        container, node = waiting.popleft()
        if id(node) in seen or len(container) > MAX_NESTING:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            items: Iterable[tuple[object, object]] = node.items()
        elif isinstance(node, list | tuple):
            items = enumerate(node)
        else:
            continue
        for key, value in items:
            if not isinstance(key, str | int) or len(text := str(key)) > MAX_KEY:
                continue
            if isinstance(value, Tensor):
                yield container, text, value
            elif isinstance(value, dict | list | tuple):
                waiting.append(((*container, text), value))


def _unusable(tensor: Tensor) -> str:
    """The reason why a tensor does not contain plain numbers; empty if it does."""
    if tensor.is_meta:
        return "it has no values"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "it is sparse or nested"
    if tensor.is_quantized or tensor.dtype not in FLOATS + COUNTERS:
        return f"its type is {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged header raises many kinds of errors
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}.",
            fix="Download or copy it again.",
        ) from error


def _load_torch(path: Path) -> object:
    try:
        content: object = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        # The message of torch advises to load the file anyway; only the class name is useful.
        if culprit := re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error)):
            raise CheckpointError(
                f"{path} contains more than tensors, and reading it would run code from the file.",
                why=f"It refers to {culprit[1] or culprit[2]}.",
                fix="If you trust the file, save only its weights: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt').",
            ) from error
        raise _not_a_checkpoint(path, "its bytes are not tensors") from error
    except Exception as error:  # damaged bytes raise any kind of error inside torch
        raise _not_a_checkpoint(path, str(error)) from error
    return content


def _not_a_checkpoint(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a PyTorch or safetensors checkpoint, or it is damaged.",
        why=printable(why.strip().partition("\n")[0]),
        fix="Pass an official .bin/.pt/.ckpt file, a .safetensors file or a Hugging Face folder.",
    )


def sha256(paths: Sequence[Path]) -> str:
    """Hexadecimal SHA-256 digest of the bytes of all files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
