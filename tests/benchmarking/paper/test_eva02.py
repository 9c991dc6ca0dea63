"""EVA-02's blocks compared with its formulas, computed token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_deploy.benchmarking.paper.eva02 import NormedSwiglu
from eomt_deploy.benchmarking.paper.ladder import BACKBONES, build_step
from eomt_deploy.network.eomt import Block, EoMT
from eomt_deploy.network.masked import MaskedEoMT

SIZE, GRID = (64, 96), (4, 6)
QUERIES, PREFIX = 6, 1
HEADS, HEAD_WIDTH = 2, 32
PLAIN = QUERIES + PREFIX

# Parameters of timm 1.0.31's models at 640x640 with patches of 16 and no classifier.
TIMM = {"large": 304_791_552, "large-deit3": 304_787_456, "large-eva02": 304_829_376}
DIFFERENT_LAYOUT = {"large-eva02": 24 * 1024 - 1024}
"""Zeros in place of the keys' missing biases, and the position embedding of the class token."""


def tiny(step: int = 5) -> nn.Module:
    return build_step(step, "tiny-eva02", size=SIZE, queries=QUERIES, classes=5)


def random_images(count: int = 1) -> Tensor:
    return torch.randint(
        0, 256, (count, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def published_order() -> Tensor:
    """Position in our layout of the neighbouring channels that published weights rotate."""
    order = torch.empty(HEAD_WIDTH, dtype=torch.int64)
    order[0::2] = torch.arange(HEAD_WIDTH // 2)
    order[1::2] = torch.arange(HEAD_WIDTH // 2) + HEAD_WIDTH // 2
    return order


def turned(x: Tensor) -> Tensor:
    """Neighbouring channels of ``x`` [tokens, head width] as complex numbers, rotated by the row
    (first half) and the column of the token's patch, scaled to a grid of 16 x 16."""
    frequencies = [10_000 ** (-i / (HEAD_WIDTH // 4)) for i in range(HEAD_WIDTH // 4)]
    out = x.clone()
    for token in range(PLAIN, len(x)):
        row, column = divmod(token - PLAIN, GRID[1])
        row, column = row / GRID[0] * 16, column / GRID[1] * 16
        angles = torch.tensor([p * f for p in (row, column) for f in frequencies])
        numbers = torch.view_as_complex(x[token].reshape(-1, 2))
        numbers = numbers * torch.polar(torch.ones(len(angles)), angles)
        out[token] = torch.view_as_real(numbers).flatten()
    return out


def reference(block: Block, x: Tensor) -> Tensor:
    """One block for an image [tokens, D], with separate projections and no bias of the keys."""
    norm = F.layer_norm(x, x.shape[1:], block.norm1.weight, block.norm1.bias, 1e-6)
    (wq, wk, wv), (bq, _, bv) = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
    order = published_order()
    heads = []
    for head in range(HEADS):
        rows = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        q = turned(norm @ wq[rows][order].T + bq[rows][order])
        k = turned(norm @ wk[rows][order].T)
        v = norm @ wv[rows].T + bv[rows]
        heads.append((q @ k.T / HEAD_WIDTH**0.5).softmax(dim=-1) @ v)
    x = x + block.attn.proj(torch.cat(heads, dim=-1))

    mlp = block.mlp
    assert isinstance(mlp, NormedSwiglu)
    norm = F.layer_norm(x, x.shape[1:], block.norm2.weight, block.norm2.bias, 1e-6)
    (wg, wx), (bg, bx) = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    gate, value = norm @ wg.T + bg, norm @ wx.T + bx
    hidden = gate * gate.sigmoid() * value
    hidden = F.layer_norm(hidden, hidden.shape[1:], mlp.norm.weight, mlp.norm.bias, 1e-6)
    return x + hidden @ mlp.fc2.weight.T + mlp.fc2.bias


def test_block_computes_what_it_is_described_as():
    model = tiny()
    assert isinstance(model, EoMT)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, PLAIN + GRID[0] * GRID[1], 64, generator=generator)
    block = model.backbone.layers[0]
    for norm in (block.norm1, block.norm2, block.mlp.norm):
        norm.weight.normal_(1, 0.2, generator=generator)
        norm.bias.normal_(std=0.2, generator=generator)
    found = block(x, model.backbone.rope())
    for image, want in zip(found, x, strict=True):
        torch.testing.assert_close(image, reference(block, want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("step", "plain"), [(0, PREFIX), (1, PREFIX), (4, PLAIN), (5, PLAIN)])
def test_only_patches_are_turned_and_learned_positions_stay(step, plain):
    model = tiny(step)
    backbone = (model if step >= 4 else model.encoder).backbone
    assert backbone.pos_embed.shape == (1, 24, 64)
    assert backbone.pos_embed.std() > 0
    cos, sin = backbone.rope()
    assert cos.shape == sin.shape == (plain + 24, HEAD_WIDTH)
    # The first patch is at (0, 0).
    assert (cos[: plain + 1] == 1).all()
    assert (sin[: plain + 1] == 0).all()
    assert (sin[plain + 1 :] != 0).any(dim=-1).all()
    before = model(random_images())[1]
    backbone.rope_cos, backbone.rope_sin = torch.ones_like(cos), torch.zeros_like(sin)
    assert (model(random_images())[1] - before).abs().max() > 1e-4  # they are used
    assert not [name for name in model.state_dict() if "rope" in name]


def test_masks_that_hold_everything_change_nothing():
    masked, plain = tiny(4), tiny(5)
    assert isinstance(masked, MaskedEoMT)
    images = random_images()
    want = plain(images)
    assert (masked(images)[1] - want[1]).abs().max() > 1e-4  # masks have an effect
    masked.allowed = lambda logits: MaskedEoMT.allowed(masked, torch.ones_like(logits))
    for a, b in zip(masked(images), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("step", [0, 4, 5])
@pytest.mark.parametrize("backbone", TIMM)
def test_parameters_are_those_of_the_published_backbones(step, backbone):
    model = build_step(step, backbone, size=(640, 640), queries=200, classes=133, device="meta")
    vit = (model if step >= 4 else model.encoder).backbone
    found = sum(value.numel() for value in vit.parameters())
    assert found == TIMM[backbone] + DIFFERENT_LAYOUT.get(backbone, 0)
    assert BACKBONES["large-eva02"].mlp_hidden == int(1024 * 4 * 2 / 3)
