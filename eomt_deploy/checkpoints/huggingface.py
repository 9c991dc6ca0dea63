"""Keys and config of transformers' ``EomtForUniversalSegmentation`` (4.x and 5.x)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_deploy.errors import CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

HUB_PREFIX = "hf://"
MARKER = "embeddings.patch_embeddings.projection.weight"

# Written as (pattern, replacement); the first that matches wins.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.cls_token", "backbone.cls_token"),
    (r"embeddings\.register_tokens", "backbone.reg_token"),
    (r"embeddings\.position_embeddings\.weight", "backbone.pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"backbone.patch_embed.proj.\1"),
    (r"layers\.(\d+)\.norm([12])\.(\w+)", r"backbone.blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attention\.out_proj\.(\w+)", r"backbone.blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1", r"backbone.blocks.\1.ls\2.gamma"),
    (r"layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"backbone.blocks.\1.mlp.\2.\3"),
    # SwiGLU, transformers 4.x: already packed, gate first.
    (r"layers\.(\d+)\.mlp\.weights_in\.(\w+)", r"backbone.blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.mlp\.(?:weights_out|down_proj)\.(\w+)", r"backbone.blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(\w+)", r"backbone.norm.\1"),
    (r"query\.weight", "q.weight"),
    (r"class_predictor\.(\w+)", r"class_head.\1"),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.(\w+)", r"upscale.\1.norm.\2"),
    (r"upscale_block\.block\.(\d+)\.(conv[12])\.(\w+)", r"upscale.\1.\2.\3"),
)
MASK_HEAD = {"fc1": "0", "fc2": "2", "fc3": "4"}
# Parts that our layout packs into one tensor, in this order.
PACKS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("attention", ("q_proj", "k_proj", "v_proj"), "attn.qkv"),
    ("mlp", ("gate_proj", "up_proj"), "mlp.fc1"),  # SwiGLU, transformers 5.x
)


@dataclass(frozen=True)
class Config:
    """What config.json adds to the shapes."""

    heads: int | None
    norm_eps: float
    image_size: tuple[int, int] | None
    class_names: tuple[str, ...] | None


def recognises(keys: Iterable[str]) -> bool:
    return MARKER in keys


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our key layout; unknown keys keep their names, so that they are reported as extra."""
    left = {k: v for k, v in tensors.items() if not k.startswith("criterion.")}
    result = _packed(left)
    for key, tensor in left.items():
        name = _renamed(key)
        result[name] = tensor.unsqueeze(0) if name == "backbone.pos_embed" else tensor
    return result


def _renamed(key: str) -> str:
    if match := re.fullmatch(r"mask_head\.(fc[123])\.(\w+)", key):
        return f"mask_head.{MASK_HEAD[match[1]]}.{match[2]}"
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key


def _packed(left: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the parts of packed tensors out of ``left`` and join them."""
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
    """config.json of a model folder, or None where there is none.

    Raises:
        CheckpointError: not JSON, or a model that is not EoMT.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        model_type = data.get("model_type", "eomt")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if model_type != "eomt":
        raise CheckpointError(
            f"{path} describes a {model_type!r} model; this version exports 'eomt' "
            "(the DINOv2 family).",
            fix="Pass an EoMT checkpoint with a DINOv2 backbone.",
        )
    size = data.get("image_size")
    labels = data.get("id2label") or {}
    checks = {
        "num_attention_heads": _is_count(data.get("num_attention_heads", 1)),
        "layer_norm_eps": isinstance(data.get("layer_norm_eps", 1e-6), float),
        "hidden_act": data.get("hidden_act", "gelu") == "gelu",
        "image_size": size is None
        or _is_count(size)
        or (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))),
        "id2label": isinstance(labels, dict)
        and set(labels) == {str(i) for i in range(len(labels))}
        and all(isinstance(name, str) for name in labels.values()),
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        shown = "; ".join(f"{name} is {json.dumps(data.get(name))[:60]}" for name in wrong)
        raise CheckpointError(f"{path} has values that no EoMT has: {shown}.")
    names = tuple(labels[str(index)] for index in range(len(labels)))
    sides = [size, size] if isinstance(size, int) else size
    return Config(
        heads=data.get("num_attention_heads"),
        norm_eps=data.get("layer_norm_eps", 1e-6),
        image_size=(sides[0], sides[1]) if sides else None,
        # LABEL_0, LABEL_1 … are transformers' placeholders, not names.
        class_names=names if names and names[0] != "LABEL_0" else None,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def download(repository: str) -> Path:
    """Fetch ``owner/name`` from the Hugging Face hub into its cache; returns the folder.

    ``HF_HOME`` and ``HF_HUB_OFFLINE`` are respected by huggingface-hub itself.

    Raises:
        MissingDependencyError: huggingface-hub is not installed.
        CheckpointError: no such repository, no access, or no network.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "Downloading from the Hugging Face hub needs huggingface-hub.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(repository, allow_patterns=["config.json", "pytorch_model.bin"])
            )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{HUB_PREFIX}{repository} cannot be downloaded.",
            why=str(error).strip().splitlines()[0],
            fix="Check the name and the network, log in with `hf auth login` if the model is "
            "gated, or pass a local folder.",
        ) from error
    return folder
