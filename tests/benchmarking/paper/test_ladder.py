from __future__ import annotations

import pytest
import torch
from torch import nn

from eomt_deploy.benchmarking.paper.baseline.mask_decoder import allowed_inside
from eomt_deploy.benchmarking.paper.ladder import STEPS, build_step
from eomt_deploy.errors import UsageError
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.masked import MaskedEoMT, attend

SIZE = (64, 96)


def tiny_step(step: int, **options) -> nn.Module:
    return build_step(step, "tiny", size=SIZE, queries=6, classes=5, **options)


def random_images(count: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


EVERY_STEP = [(step, "tiny") for step in range(len(STEPS))]
TABLE_2 = [(step, backbone) for backbone in ("tiny-deit3", "tiny-eva02") for step in (0, 4, 5)]


@pytest.mark.parametrize(("step", "backbone"), EVERY_STEP + TABLE_2)
def test_every_step_keeps_the_tensor_contract(step, backbone):
    model = build_step(step, backbone, size=SIZE, queries=6, classes=5)
    images = random_images(2)
    class_logits, mask_logits = model(images)
    assert class_logits.shape == (2, 6, 6)
    assert mask_logits.shape == (2, 6, 16, 24)
    assert not class_logits.requires_grad
    assert not model.training
    alone = model(images[1:])
    torch.testing.assert_close(alone[0][0], class_logits[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[1][0], mask_logits[1], atol=1e-4, rtol=1e-4)
    # Another image gives another result, so the output depends on the image.
    assert (mask_logits[0] - mask_logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("step", "backbone"),
    [
        (0, "tiny"), (3, "tiny"), (4, "tiny"), (5, "tiny"),
        (4, "tiny-dinov3"), (5, "tiny-dinov3"),
        (0, "tiny-eva02"), (4, "tiny-eva02"), (5, "tiny-eva02"),
    ],
)  # fmt: skip
def test_both_attentions_compute_the_same(step, backbone):
    images = random_images(1)
    options = {"size": SIZE, "queries": 6, "classes": 5}
    fused = build_step(step, backbone, attention="sdpa", **options)(images)
    written = build_step(step, backbone, attention="written", **options)(images)
    for a, b in zip(fused, written, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_seeds_make_weights_and_leave_the_callers_randomness_alone():
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (tiny_step(0, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(4), want)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    key = "encoder.backbone.pos_embed"
    assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize(
    ("step", "backbone", "options", "message"),
    [
        (6, "tiny", {}, "between 0 and 5, got 6"),
        (0, "huge", {}, "Backbone 'huge' is unknown"),
        (0, "tiny-dinov3", {}, "tiny-dinov3 must be 4 or 5, got 0"),
        (0, "tiny", {"size": (64, 80)}, "multiples of 32, got 64x80"),
        (5, "tiny", {"size": (64, 60)}, "multiples of 16, got 64x60"),
        (0, "tiny", {"attention": "flash"}, "Attention 'flash' is unknown"),
        (0, "tiny", {"sampling": "cuda"}, "Sampling 'cuda' is unknown"),
        (0, "tiny", {"sampling": "triton"}, "cannot run on 'cpu'"),
    ],
)
def test_what_cannot_be_built_is_said(step, backbone, options, message):
    with pytest.raises(UsageError, match=message):
        build_step(step, backbone, **{"size": SIZE, "queries": 2, "classes": 2, **options})


def test_the_last_step_is_our_network():
    assert type(tiny_step(5)) is EoMT


def test_masks_that_hold_everything_make_step_4_equal_step_5():
    masked, plain = tiny_step(4), tiny_step(5)
    assert isinstance(masked, MaskedEoMT)
    images = random_images(1)
    found = masked(images)
    assert (found[1] - plain(images)[1]).abs().max() > 1e-3  # masks have an effect
    masked.allowed = lambda logits: MaskedEoMT.allowed(masked, torch.ones_like(logits))
    for a, b in zip(masked(images), plain(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_which_tokens_attend_to_which_in_masked_eomt():
    model = tiny_step(4)
    logits = torch.full((1, 6, 16, 24), -1.0)
    logits[0, 2, :4, :4] = 1  # the first patch
    allowed = model.allowed(logits)[0, 0]
    queries, prefix, patches = 6, 5, 24
    assert allowed.shape == (queries + prefix + patches,) * 2
    assert allowed[queries:].all()
    assert allowed[:, : queries + prefix].all()
    inside = allowed[:queries, queries + prefix :]
    assert inside.nonzero().tolist() == [[2, 0]]


def test_empty_masks_of_mask2former_see_everything():
    logits = torch.full((1, 2, 4, 4), -1.0)
    logits[0, 1, :2, :2] = 1
    allowed = allowed_inside(logits, (2, 2))
    assert allowed.tolist() == [[[[True] * 4, [True, False, False, False]]]]


def test_what_is_not_allowed_has_no_influence():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 4, 8)
    allowed = torch.tensor([True, True, False, True]).expand(1, 1, 4, 4)
    for kind in ("sdpa", "written"):
        before = attend(q, k, v, allowed, scale=0.3, kind=kind)
        changed = v.clone()
        changed[:, :, 2] += 100
        torch.testing.assert_close(attend(q, k, changed, allowed, scale=0.3, kind=kind), before)


@pytest.mark.gpu
@pytest.mark.parametrize("step", range(len(STEPS)))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_step_runs_in_half_precision(step, dtype):
    """Without torch.compile, which takes minutes; `benchmarks/gpu_paper.py` runs it."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    model = tiny_step(step, device="cuda").to(dtype)
    for logits in model(random_images(1).cuda()):
        assert torch.isfinite(logits).all()
