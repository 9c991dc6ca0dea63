"""Keys and config of transformers' ``EomtForUniversalSegmentation`` (4.x and 5.x) and
``EomtDinov3ForUniversalSegmentation``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_deploy.checkpoints.dinov3 import ROPE_THETA
from eomt_deploy.checkpoints.shapes import MAX_HEADS, MAX_SIDE
from eomt_deploy.errors import CheckpointError, MissingDependencyError
from eomt_deploy.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

HUB_PREFIX = "hf://"
DINOV3_MARKER = "embeddings.patch_embeddings.weight"
MAX_THETA = 1e9
"""Maximum base of the rotary positions, which is 100 in all published models."""
MAX_CONFIG_BYTES = 1 << 20
"""Real files have a few kilobytes; Python needs seconds to parse 10 MB of nested lists."""
MODEL_TYPES = ("eomt", "eomt_dinov3")

# (pattern, replacement): the first pattern that matches is applied.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.cls_token", "backbone.cls_token"),
    (r"embeddings\.register_tokens", "backbone.reg_token"),
    (r"embeddings\.position_embeddings\.weight", "backbone.pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(\w+)", r"backbone.patch_embed.proj.\1"),
    (r"layers\.(\d+)\.norm([12])\.(\w+)", r"backbone.blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attention\.(?:out|o)_proj\.(\w+)", r"backbone.blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1", r"backbone.blocks.\1.ls\2.gamma"),
    (r"layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"backbone.blocks.\1.mlp.\2.\3"),
    # SwiGLU, transformers 4.x: already packed, gate first.
    (r"layers\.(\d+)\.mlp\.weights_in\.(\w+)", r"backbone.blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.mlp\.(?:weights_out|down_proj)\.(\w+)", r"backbone.blocks.\1.mlp.fc2.\2"),
    # DINOv3 without a gate.
    (r"layers\.(\d+)\.mlp\.up_proj\.(\w+)", r"backbone.blocks.\1.mlp.fc1.\2"),
    (r"layernorm\.(\w+)", r"backbone.norm.\1"),
    (r"query\.weight", "q.weight"),
    (r"class_predictor\.(\w+)", r"class_head.\1"),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.(\w+)", r"upscale.\1.norm.\2"),
    (r"upscale_block\.block\.(\d+)\.(conv[12])\.(\w+)", r"upscale.\1.\2.\3"),
)
MASK_HEAD = {"fc1": "0", "fc2": "2", "fc3": "4"}
# Tensors that our layout packs into one, in this order.
PACKS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("attention", ("q_proj", "k_proj", "v_proj"), "attn.qkv"),
    ("mlp", ("gate_proj", "up_proj"), "mlp.fc1"),  # SwiGLU, transformers 5.x
)


@dataclass(frozen=True)
class Config:
    """Information from config.json that tensor shapes do not contain."""

    model_type: str
    heads: int | None
    norm_eps: float
    image_size: tuple[int, int] | None
    class_names: tuple[str, ...] | None
    rope_theta: float | None


def is_dinov3(keys: Iterable[str]) -> bool:
    """Whether keys of transformers include the patch embedding of DINOv3."""
    return DINOV3_MARKER in keys


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to our key layout. Unknown keys keep their names, so that they are reported."""
    left = {k: v for k, v in tensors.items() if not k.startswith("criterion.")}
    _add_key_biases(left)
    result = _packed(left)
    for key, tensor in left.items():
        name = _renamed(key)
        result[name] = tensor.unsqueeze(0) if name == "backbone.pos_embed" else tensor
    return result


def _add_key_biases(left: dict[str, Tensor]) -> None:
    """Add zero biases for the attention keys of DINOv3, which have none, in place.

    They are packed with the biases of queries and values.
    """
    import torch

    for key in [k for k in left if re.fullmatch(r"layers\.\d+\.attention\.q_proj\.bias", k)]:
        left.setdefault(key.replace("q_proj", "k_proj"), torch.zeros_like(left[key]))


def _renamed(key: str) -> str:
    if match := re.fullmatch(r"mask_head\.(fc[123])\.(\w+)", key):
        return f"mask_head.{MASK_HEAD[match[1]]}.{match[2]}"
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key


def _packed(left: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the parts of packed tensors from ``left``, and concatenate them."""
    import torch

    result = {}
    for group, parts, target in PACKS:
        first = re.compile(rf"layers\.(\d+)\.{group}\.{parts[0]}\.(\w+)")
        for match in [m for key in left if (m := first.fullmatch(key))]:
            block, kind = match[1], match[2]
            keys = [f"layers.{block}.{group}.{part}.{kind}" for part in parts]
            if all(key in left for key in keys):
                joined = torch.cat([left.pop(key) for key in keys])
                result[f"backbone.blocks.{block}.{target}.{kind}"] = joined
    return result


def read_config(folder: Path) -> Config | None:
    """Read config.json of a model folder; None if there is none.

    Raises:
        CheckpointError: the file is not valid JSON, or the model is not a supported EoMT.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = read_json(path, MAX_CONFIG_BYTES)
        model_type = data.get("model_type", "eomt")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", fix="Download the folder again."
        ) from error
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"model_type of {path} must be {' or '.join(MODEL_TYPES)}, got {_shown(model_type)}.",
            fix="Pass an EoMT checkpoint with a DINOv2 or DINOv3 backbone.",
        )
    if data.get("use_gated_mlp"):
        raise CheckpointError(
            f"{path} has use_gated_mlp, which is not supported for this format.",
            why="For mask head and upscaling, transformers then uses the activation of the gate, "
            "but the official code uses GELU. It is unknown which one the weights were trained "
            "with.",
            fix="Pass the official checkpoint.",
        )
    rope = data.get("rope_parameters") or {}
    theta = data.get("rope_theta", ROPE_THETA)
    if isinstance(rope, dict):
        theta = rope.get("rope_theta", theta)
    size = data.get("image_size")
    names = _class_names(data.get("id2label") or {})
    checks = {
        "num_attention_heads": _is_count(data.get("num_attention_heads", 1), MAX_HEADS),
        "layer_norm_eps": isinstance(eps := data.get("layer_norm_eps", 1e-6), float)
        and 0 < eps < 1,
        "hidden_act": data.get("hidden_act", "gelu") == "gelu",
        "rope_parameters": isinstance(rope, dict) and rope.get("rope_type", "default") == "default",
        "rope_theta": isinstance(theta, int | float) and 1 < theta < MAX_THETA,
        "image_size": size is None
        or _is_count(size, MAX_SIDE)
        or (
            isinstance(size, list)
            and len(size) == 2
            and all(_is_count(side, MAX_SIDE) for side in size)
        ),
        "id2label": names is not None,
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        values = data | {"rope_theta": theta}
        shown = "; ".join(f"{name} is {_shown(values.get(name))}" for name in wrong)
        raise CheckpointError(
            f"{path} has values that are invalid for an EoMT: {shown}.",
            fix="Download the folder again, or correct the file.",
        )
    sides = [size, size] if isinstance(size, int) else size
    return Config(
        model_type=model_type,
        heads=data.get("num_attention_heads"),
        norm_eps=data.get("layer_norm_eps", 1e-6),
        image_size=(sides[0], sides[1]) if sides else None,
        # LABEL_0, LABEL_1 … are transformers' placeholders, not names.
        class_names=names if names and names[0] != "LABEL_0" else None,
        rope_theta=float(theta) if model_type == "eomt_dinov3" else None,
    )


def _class_names(labels: object) -> tuple[str, ...] | None:
    """The names of ``id2label`` in the order of the ids, which can be written "0" or "00".

    None if the ids do not count from 0 without gaps, or a name is not text.
    """
    if not isinstance(labels, dict):
        return None
    by_id = {int(key): name for key, name in labels.items() if re.fullmatch(r"[0-9]{1,9}", key)}
    if len(by_id) != len(labels) or sorted(by_id) != list(range(len(labels))):
        return None
    names = tuple(by_id[index] for index in range(len(by_id)))
    return names if all(isinstance(name, str) for name in names) else None


def _is_count(value: object, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= maximum


def _shown(value: object) -> str:
    """A value as JSON, shortened."""
    try:
        return json.dumps(value)[:60]
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def download(repository: str) -> Path:
    """Download ``owner/name[@revision]`` from the Hugging Face Hub into its cache.

    huggingface-hub handles ``HF_HOME`` and ``HF_HUB_OFFLINE``, and resumes interrupted downloads.

    Returns:
        the folder in the cache.

    Raises:
        MissingDependencyError: huggingface-hub is not installed.
        CheckpointError: the repository or revision does not exist, or cannot be accessed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError(
            "Downloading from the Hugging Face Hub needs huggingface-hub, which is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error
    name, at, revision = repository.partition("@")
    if at and not re.fullmatch(r"[\w.][\w./-]*", revision):
        raise CheckpointError(
            f"The revision {revision!r} of {HUB_PREFIX}{repository} is not a valid name.",
            fix="Use a branch, a tag or a commit, e.g. hf://owner/name@main",
        )
    weights = ["*.safetensors", "*.safetensors.index.json"]
    pickled = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
    try:
        for patterns in (weights, pickled):
            folder = Path(
                snapshot_download(
                    name, revision=revision or None, allow_patterns=["config.json", *patterns]
                )
            )
            if any(folder.glob("*.safetensors")):
                break
    except (KeyboardInterrupt, SystemExit):
        print(
            f"Stopped: the next run resumes the download of {HUB_PREFIX}{repository}.",
            file=sys.stderr,
        )
        raise
    except Exception as error:  # errors of huggingface-hub and of its HTTP library
        raise CheckpointError(
            f"{HUB_PREFIX}{repository} cannot be downloaded.",
            why=next(iter(str(error).strip().splitlines()), repr(error)),
            fix="Check the name, the revision and the network, log in with `hf auth login` if the "
            "model is gated, or pass a local folder.",
        ) from error
    return folder


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the cache of huggingface-hub; None for other folders."""
    return folder.name if folder.parent.name == "snapshots" else None
