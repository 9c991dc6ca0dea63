"""DINOv3 compared with the class of transformers, in all formats of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.network import build_network
from eomt_deploy.network.folds import fold
from eomt_deploy.network.position import rope_table, turn

transformers = pytest.importorskip("transformers")
SIZE = 64
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def make_model(*, gated: bool = False, eps: float = 1e-6, depth: int = 3):
    torch.manual_seed(5)
    config = transformers.EomtDinov3Config(
        hidden_size=64,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=96,
        num_blocks=min(depth, 2),
        num_queries=10,
        image_size=SIZE,
        num_register_tokens=3,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        layer_norm_eps=eps,
        id2label={i: c["name"] for i, c in enumerate(tiny.CLASSES)},
    )
    model = transformers.EomtDinov3ForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(std=1.5 * value[0].numel() ** -0.5)
            elif "lambda" in name:
                value.uniform_(0.1, 1)
            elif name.endswith("bias"):
                value.normal_(std=0.3)
        model.class_predictor.weight.mul_(10)
        model.attn_mask_probs.zero_()
    if gated:  # unlike the official code, transformers also uses the gate's activation in the heads
        for module in (model.mask_head, *model.upscale_block.modules()):
            if hasattr(module, "activation"):
                module.activation = torch.nn.GELU()
    return model


def run(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = (images.permute(0, 3, 1, 2) / 255 - MEAN) / STD
    model.grid_size = (images.shape[1] // 16, images.shape[2] // 16)
    with torch.no_grad():
        out = model(pixels)
    return out.class_queries_logits, out.masks_queries_logits


def pictures(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)


def close(found, wanted) -> None:
    for have, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(have, want, atol=1e-4 * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 80)])
def test_folder_of_transformers(tmp_path, size):
    model = make_model()
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    arch = checkpoint.architecture
    assert (arch.family, arch.rope_theta, arch.mlp) == ("dinov3", 100.0, "gelu")
    assert (arch.registers, arch.num_blocks, arch.mlp_hidden) == (3, 2, 96)
    assert checkpoint.native_grid == (4, 4)
    images = pictures(*size)
    network = build_network(checkpoint, size)
    close(network(images), run(model, images))
    close(fold(network)(images), run(model, images))


def official(model, folder: Path) -> dict[str, torch.Tensor]:
    """The same weights under the official names."""
    names = (
        ("embeddings.patch_embeddings.", "network.encoder.backbone.patch_embed.patch_embeddings."),
        ("embeddings.", "network.encoder.backbone.patch_embed."),
        ("layers.", "network.encoder.backbone.blocks."),
        ("layernorm.", "network.encoder.backbone.norm."),
        ("query.", "network.q."),
        ("class_predictor.", "network.class_head."),
        ("mask_head.fc1.", "network.mask_head.0."),
        ("mask_head.fc2.", "network.mask_head.2."),
        ("mask_head.fc3.", "network.mask_head.4."),
        ("upscale_block.block.", "network.upscale."),
        ("attn_mask_probs", "network.attn_mask_probs"),
    )
    found = {}
    model.save_pretrained(folder)
    for key, value in load_file(folder / "model.safetensors").items():
        old, new = next((n for n in names if key.startswith(n[0])), ("", ""))
        if not key.startswith("criterion."):
            found[key.replace(old, new, 1).replace(".layernorm2d.", ".norm.")] = value
    found["network.encoder.pixel_mean"], found["network.encoder.pixel_std"] = MEAN, STD
    return found


def split(complete: dict[str, torch.Tensor]) -> tuple[dict, dict, dict]:
    """An official difference, its base with the names of transformers, and their exact sum."""
    generator = torch.Generator().manual_seed(1)
    delta, base, merged = {}, {}, dict(complete)
    for key, value in complete.items():
        if key.startswith("network.encoder.backbone."):
            delta[key] = 1e-3 * torch.randn(value.shape, generator=generator)
            name = key.removeprefix("network.encoder.backbone.")
            name = name.replace("blocks.", "layer.", 1).replace("patch_embed.", "embeddings.", 1)
            base[name] = value
            merged[key] = delta[key] + value
        else:
            delta[key] = value
    for name in ("pixel_mean", "pixel_std"):
        delta[f"network.encoder.{name}"] = torch.zeros(1, 3, 1, 1)
    base["embeddings.mask_token"] = torch.zeros(1, 1, 64)
    return delta, base, merged


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_official_file_has_its_own_epsilon(tmp_path, gated):
    model = make_model(eps=1e-5, gated=gated)
    torch.save(official(model, tmp_path / "hf"), tmp_path / "complete.bin")
    checkpoint = read_checkpoint(tmp_path / "complete.bin", heads=2)
    assert checkpoint.architecture.mlp == ("swiglu" if gated else "gelu")
    assert checkpoint.source_format == "official DINOv3"
    assert checkpoint.architecture.norm_eps == 1e-5
    images = pictures(64, 64)
    close(build_network(checkpoint, (64, 64))(images), run(model, images))
    with pytest.raises(CheckpointError, match="--base-weights has no effect here"):
        read_checkpoint(tmp_path / "complete.bin", heads=2, base_weights=tmp_path / "hf")
    if gated:
        with pytest.raises(CheckpointError, match="use_gated_mlp"):
            read_checkpoint(tmp_path / "hf")


@pytest.mark.parametrize("buffers", [True, False], ids=["buffers", "norms"])
def test_difference_and_base_are_the_merged_model_exactly(tmp_path, buffers):
    delta, base, merged = split(official(make_model(), tmp_path / "hf"))
    if not buffers:
        for key in [k for k in delta if "pixel_" in k]:
            del delta[key]
    torch.save(delta, tmp_path / "delta.bin")
    torch.save(merged, tmp_path / "merged.bin")
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(base, folder / "model.safetensors")
    wanted = read_checkpoint(tmp_path / "merged.bin", heads=2)
    for source in (folder, folder / "model.safetensors"):
        found = read_checkpoint(tmp_path / "delta.bin", heads=2, base_weights=source)
        assert found.source_format == "official DINOv3 difference"
        assert found.architecture == wanted.architecture
        assert found.tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(v, wanted.tensors[k]) for k, v in found.tensors.items())
    assert found.sha256 != wanted.sha256


def test_difference_without_its_base_is_refused(tmp_path, cli):
    delta, base, _ = split(official(make_model(), tmp_path / "hf"))
    torch.save(delta, tmp_path / "delta.bin")
    with pytest.raises(CheckpointError, match="contains only the difference") as error:
        read_checkpoint(tmp_path / "delta.bin", heads=2)
    assert "--base-weights" in error.value.fix
    (tmp_path / "classes.json").write_text(json.dumps(tiny.CLASSES))
    code, _, err = cli(
        "export", tmp_path / "delta.bin", "--task", "panoptic", "--heads", "2",
        "--classes", tmp_path / "classes.json", "--size", "64", "-o", tmp_path / "m.onnx",
    )  # fmt: skip
    assert code == 2
    assert "--base-weights" in err
    # Bases: of another size, incomplete, not a DINOv3 model, missing.
    small = {k: v[..., :32] if v.ndim > 1 else v for k, v in base.items()}
    save_file({k: v.contiguous() for k, v in small.items()}, tmp_path / "small.safetensors")
    short = {k: v for k, v in base.items() if "layer.2." not in k}
    save_file(short, tmp_path / "short.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, words in (
        ("small", "tensors do not match"),
        ("short", "missing in the base"),
        ("other", "not a DINOv3 model"),
        ("none", "no base weights at"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(
                tmp_path / "delta.bin", heads=2, base_weights=tmp_path / f"{name}.safetensors"
            )


def test_only_patches_turn_and_by_their_place():
    cos, sin = rope_table((2, 3), plain=4, head_width=8, theta=100.0)
    assert cos.shape == sin.shape == (10, 8)
    x = torch.randn(1, 1, 10, 8)
    turned = turn(x, (cos, sin))
    torch.testing.assert_close(turned[..., :4, :], x[..., :4, :])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    # The product of two rotated tokens depends only on their relative position.
    q, k = torch.randn(2, 8)
    grid = torch.zeros(1, 1, 4 + 12, 8)
    table = rope_table((1, 12), plain=4, head_width=8, theta=100.0)
    grid[..., 4:, :] = q
    queries = turn(grid, table)[0, 0, 4:]
    grid[..., 4:, :] = k
    keys = turn(grid, table)[0, 0, 4:]
    scores = queries @ keys.T
    for offset in (-3, 0, 5):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export_of_a_folder(tmp_path, image_path, precision):
    model = make_model(depth=1)  # is traced in half of the time
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "classes.json").write_text(json.dumps(tiny.CLASSES))
    config = ExportConfig(
        str(tmp_path / "hf"), tmp_path / "m.onnx", task="panoptic", precision=precision,
        classes=tmp_path / "classes.json", size=(64, 96),
    )  # fmt: skip
    report = export(config)
    assert report.spec.backbone.family == "dinov3"
    assert report.verification.relative_max < (1e-3 if precision == "fp32" else 5e-2)
    assert report.spec.provenance["source_format"] == "huggingface DINOv3"
    from eomt_deploy import Segmenter

    with Segmenter(tmp_path / "m.onnx") as segmenter:
        assert np.isfinite(segmenter.logits(image_path)[0]).all()


def test_what_only_the_user_knows(tmp_path):
    torch.save(official(make_model(), tmp_path / "hf"), tmp_path / "complete.bin")
    (tmp_path / "classes.json").write_text(json.dumps(tiny.CLASSES))
    options = {"task": "panoptic", "classes": tmp_path / "classes.json", "heads": 2}
    with pytest.raises(UsageError, match="trained size cannot be inferred"):
        export(ExportConfig(str(tmp_path / "complete.bin"), tmp_path / "m.onnx", **options))
    with pytest.raises(UsageError, match="cannot be exported as one Attention operator"):
        export(
            ExportConfig(
                str(tmp_path / "complete.bin"), tmp_path / "m.onnx", attention="fused",
                native_size=(64, 64), **options,
            )
        )  # fmt: skip
