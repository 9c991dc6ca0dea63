"""Set prediction: match queries to segments, then mask, dice and class losses (weights 5, 5, 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from batches import Batch
from network import Prediction
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MASK_WEIGHT, DICE_WEIGHT, CLASS_WEIGHT = 5.0, 5.0, 2.0
NO_OBJECT_WEIGHT = 0.1


@torch.no_grad()
def match(classes: Tensor, masks: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The cheapest assignment: for each image, indices of queries and of their segments.

    classes: [B, Q, C+1] logits; masks: [B, Q, P] logits over the P cells.
    """
    target, cells = batch.masks, masks.shape[-1]  # [B, N, P]
    transposed = target.transpose(1, 2)
    # BCE(x, t) = softplus(x) - x t, so all pairs of query and segment are one matrix product.
    bce = (F.softplus(masks).sum(-1, keepdim=True) - masks @ transposed) / cells
    inside = masks.sigmoid()
    overlap = 2 * (inside @ transposed) + 1
    dice = 1 - overlap / (inside.sum(-1, keepdim=True) + target.sum(-1)[:, None] + 1)
    labels = batch.labels[:, None].expand(-1, masks.shape[1], -1)
    score = classes.softmax(-1).gather(2, labels)  # [B, Q, N]
    cost = (MASK_WEIGHT * bce + DICE_WEIGHT * dice - CLASS_WEIGHT * score).numpy()
    pairs = []
    for i, count in enumerate(batch.counts):
        queries, segments = linear_sum_assignment(cost[i, :, :count])
        pairs.append((torch.from_numpy(queries), torch.from_numpy(segments)))
    return pairs


def loss(prediction: Prediction, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, dice and class loss of one prediction, each with its weight applied."""
    classes, masks = prediction.class_logits.float(), prediction.mask_logits.float().flatten(2)
    pairs = match(classes, masks, batch)
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(pairs)])
    query = torch.cat([q for q, _ in pairs])
    segment = torch.cat([s for _, s in pairs])
    x, t = masks[image, query], batch.masks[image, segment]  # [matched, P]
    bce = F.binary_cross_entropy_with_logits(x, t)
    inside = x.sigmoid()
    dice = 1 - (2 * (inside * t).sum(-1) + 1) / (inside.sum(-1) + t.sum(-1) + 1)

    no_object = classes.shape[-1] - 1
    label = torch.full(classes.shape[:2], no_object)
    label[image, query] = batch.labels[image, segment]
    weight = torch.ones(no_object + 1)
    weight[no_object] = NO_OBJECT_WEIGHT
    entropy = F.cross_entropy(classes.flatten(0, 1), label.flatten(), weight)
    return MASK_WEIGHT * bce, DICE_WEIGHT * dice.mean(), CLASS_WEIGHT * entropy
