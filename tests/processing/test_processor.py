"""Each task against a plain, literal reading of the rules, in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import UsageError
from eomt_deploy.processing import Processor
from eomt_deploy.processing.geometry import plan
from eomt_deploy.processing.instance import find_instances
from eomt_deploy.processing.panoptic import merge_segments
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, TASKS, Backbone, ModelSpec, Thresholds

STUFF = {0, 1}
NUM_CLASSES = 4
CLASSES = make_classes(
    [{"name": str(i), "thing": i not in STUFF} for i in range(NUM_CLASSES)], "test"
)


def make_spec(task, size=(64, 64), queries=6) -> ModelSpec:
    return ModelSpec(
        name=task,
        task=task,
        image_size=size,
        patch_size=16,
        num_queries=queries,
        num_blocks=1,
        num_upscale=2,
        classes=CLASSES,
        resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task],
        backbone=Backbone("dinov2", 64, 4, 2, "gelu", 4, 0),
    )


def make_logits(seed: int, shape: tuple[int, ...], queries: int = 6):
    """Confident classes, and masks that are smooth blobs overlapping each other."""
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(*shape[:-2], queries, NUM_CLASSES + 1), scale=4)
    coarse = torch.from_numpy(rng.normal(size=(int(np.prod(shape[:-2])), queries, 4, 4), scale=9))
    masks = F.interpolate(coarse, shape[-2:], mode="bicubic").numpy()
    return classes.astype(np.float32), masks.reshape(*shape[:-2], queries, *shape[-2:]).astype(np.float32)  # noqa: E501  # fmt: skip


def literal_panoptic(classes, masks, thresholds):
    scores, labels = torch.from_numpy(classes).softmax(-1).max(-1)
    masks = torch.from_numpy(masks).sigmoid()
    keep = (labels != NUM_CLASSES) & (scores > thresholds.score)
    result = np.full(masks.shape[1:], -1)
    if not keep.any():
        return result, []
    masks, scores, labels = masks[keep], scores[keep], labels[keep]
    owner = (scores[:, None, None] * masks).argmax(0)
    segments, stuff_ids = [], {}
    for k, label in enumerate(labels.tolist()):
        on, won = masks[k] >= thresholds.mask, owner == k
        if not on.any() or not (on & won).any():
            continue
        if won.sum() / on.sum() < thresholds.overlap:
            continue
        if label in STUFF and label in stuff_ids:
            result[on & won] = stuff_ids[label]
            continue
        stuff_ids[label] = len(segments)
        result[on & won] = len(segments)
        segments.append((label, scores[k].item()))
    return result, segments


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    thresholds=st.builds(
        Thresholds,
        score=st.sampled_from([0.0, 0.5, 0.8]),
        mask=st.sampled_from([0.3, 0.5]),
        overlap=st.sampled_from([0.0, 0.5, 0.8]),
    ),
)
def test_panoptic_is_the_literal_rule(seed, size, thresholds):
    classes, masks = make_logits(seed, size)
    found = merge_segments(classes, masks.__getitem__, size, STUFF, thresholds)
    wanted = literal_panoptic(classes, masks, thresholds)
    assert (found[0] == wanted[0]).mean() >= 0.999
    assert [c for c, _ in found[1]] == [c for c, _ in wanted[1]]
    np.testing.assert_allclose([s for _, s in found[1]], [s for _, s in wanted[1]], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), queries=st.integers(1, 40))
def test_instances_are_the_literal_rule(seed, queries):
    classes, masks = make_logits(seed, (9, 13), queries)
    scores = torch.from_numpy(classes).softmax(-1)[:, :-1]
    top, index = scores.flatten().topk(min(100, scores.numel()))
    chosen = torch.from_numpy(masks)[index // NUM_CLASSES]
    on = (chosen > 0).float()
    quality = (chosen.sigmoid() * on).flatten(1).sum(1) / (on.flatten(1).sum(1) + 1e-6)
    wanted, order = (top * quality).sort(descending=True)
    found = find_instances(classes, masks.__getitem__, 0)
    np.testing.assert_allclose([i.score for i in found], wanted.numpy(), atol=1e-5)
    labels = (index % NUM_CLASSES)[order]
    for item, label, score, mask in zip(found, labels, wanted, on[order], strict=True):
        if score > 0.05 and (abs(wanted - score) < 1e-4).sum() == 1:
            assert item.class_id == label
            assert (item.mask == mask.numpy()).all()
    kept = find_instances(classes, masks.__getitem__, 0.3)
    assert [i.score for i in kept] == [i.score for i in found if i.score >= 0.3]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    image=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    size=st.sampled_from([(64, 64), (48, 96), (96, 48)]),
)
def test_semantic_is_the_literal_rule(seed, image, size):
    geometry = plan(image, size, "windows")
    count = geometry.num_inputs
    classes, masks = make_logits(seed, (count, size[0] // 4, size[1] // 4))
    up = F.interpolate(torch.from_numpy(masks), size, mode="bilinear").sigmoid()
    per_window = torch.einsum("nqhw,nqc->nchw", up, torch.from_numpy(classes).softmax(-1)[..., :-1])
    total = torch.zeros(NUM_CLASSES, *geometry.scaled_size)
    hits = torch.zeros(geometry.scaled_size)
    for (start, end), scores in zip(geometry.windows, per_window, strict=True):
        where = slice(start, end)
        if geometry.axis == 0:
            total[:, where] += scores
            hits[where] += 1
        else:
            total[:, :, where] += scores
            hits[:, where] += 1
    mean = F.interpolate((total / hits)[None], image, mode="bilinear")[0]
    best = mean.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    found = Processor(make_spec("semantic", size)).postprocess(classes, masks, geometry)
    assert (found.class_map == mean.argmax(0).numpy())[clear].all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(30, 90, 3), (90, 30, 3), (64, 64, 3), (7, 5, 3), (301, 299, 3)])
def test_shapes_of_a_round_trip(task, shape):
    processor = Processor(make_spec(task))
    images, geometry = processor.preprocess(np.full(shape, 99, np.uint8))
    assert images.shape == (geometry.num_inputs, 64, 64, 3)
    classes, masks = make_logits(1, (len(images), 16, 16))
    result = processor.postprocess(classes, masks, geometry)
    assert result.task == task
    assert result.size == shape[:2]
    if task == "panoptic":
        areas = [int((result.segment_map == s.id).sum()) for s in result.segments]
        assert [s.area for s in result.segments] == areas
        assert {s.id for s in result.segments} == set(np.unique(result.segment_map)) - {-1}


def test_letterbox_pads_right_and_bottom_with_zero():
    images, _ = Processor(make_spec("panoptic")).preprocess(np.full((30, 60, 3), 200, np.uint8))
    assert (images[0, :32] == 200).all()
    assert (images[0, 32:] == 0).all()


def test_thresholds_belong_to_tasks():
    processor = Processor(make_spec("panoptic"))
    assert processor.thresholds(score=0.5) == Thresholds(0.5, 0.5, 0.8)
    with pytest.raises(UsageError, match="not between 0 and 1"):
        processor.thresholds(mask=1.5)
    with pytest.raises(UsageError, match=r"no overlap threshold(.|\n)*score"):
        Processor(make_spec("instance")).thresholds(overlap=0.5)
    with pytest.raises(UsageError, match="none"):
        Processor(make_spec("semantic")).thresholds(score=0.5)


def test_outputs_of_another_model_are_refused():
    processor = Processor(make_spec("panoptic"))
    _, geometry = processor.preprocess(np.zeros((30, 60, 3), np.uint8))
    classes, masks = make_logits(1, (1, 16, 16), queries=5)
    with pytest.raises(UsageError, match="do not belong to panoptic"):
        processor.postprocess(classes, masks, geometry)
