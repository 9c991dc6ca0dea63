"""A literal implementation of the post-processing in torch, as reference for the kernels."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import torch
import torch.nn.functional as F

from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.spec import Thresholds


def resize(maps, size) -> torch.Tensor:
    """Resize maps [N, h, w] to ``size``."""
    maps = torch.as_tensor(np.asarray(maps, np.float32))
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def at_image(masks, geometry: Geometry) -> torch.Tensor:
    """Resize mask logits [Q, h, w] to the network input, crop the padding, resize to the image."""
    height, width = geometry.scaled_size
    return resize(resize(masks, geometry.input_size)[:, :height, :width], geometry.image_size)


def panoptic(classes, logits, stuff: Container[int], thresholds: Thresholds):
    """Compute segment ids [H, W] and segments from class logits [Q, C+1] and mask logits [Q, H, W].

    Also returns pixel counts [3, K] of the kept queries: the mask, the pixels that the query wins,
    and the won pixels inside the mask.
    """
    scores, labels = torch.as_tensor(np.asarray(classes, np.float32)).softmax(-1).max(-1)
    masks = torch.as_tensor(logits).sigmoid()
    keep = (labels != classes.shape[1] - 1) & (scores > thresholds.score)
    result = np.full(masks.shape[1:], -1)
    if not keep.any():
        return result, [], np.zeros((3, 0), int)
    masks, scores, labels = masks[keep], scores[keep], labels[keep]
    owner = (scores[:, None, None] * masks).argmax(0)
    on = (masks >= thresholds.mask).numpy()
    won = (owner[None] == torch.arange(len(masks))[:, None, None]).numpy()
    areas = np.stack([a.sum(axis=(1, 2)) for a in (on, won, on & won)])
    segments, stuff_ids = [], {}
    for k, label in enumerate(labels.tolist()):
        mask_area, won_area, seen = areas[:, k].tolist()
        if mask_area == 0 or seen == 0 or won_area / mask_area < thresholds.overlap:
            continue
        if label in stuff and label in stuff_ids:
            result[on[k] & won[k]] = stuff_ids[label]
            continue
        stuff_ids[label] = len(segments)
        result[on[k] & won[k]] = len(segments)
        segments.append((label, scores[k].item()))
    return result, segments, areas


def instances(classes, logits):
    """Compute scores [N], class ids [N] and masks [N, H, W], best first, from the same logits."""
    scores = torch.as_tensor(np.asarray(classes, np.float32)).softmax(-1)[:, :-1]
    top, index = scores.flatten().topk(min(100, scores.numel()))
    chosen = torch.as_tensor(logits)[index // scores.shape[1]]
    on = (chosen > 0).float()
    quality = (chosen.sigmoid() * on).flatten(1).sum(1) / (on.flatten(1).sum(1) + 1e-6)
    final, order = (top * quality).sort(descending=True)
    return final.numpy(), (index % scores.shape[1])[order].numpy(), on[order].bool().numpy()


def class_scores(classes, masks, geometry: Geometry) -> torch.Tensor:
    """Compute scores [C, H, W] from class logits [N, Q, C+1] and mask logits [N, Q, h, w]."""
    inputs = [resize(window, geometry.input_size).sigmoid() for window in masks]
    probabilities = torch.as_tensor(np.asarray(classes, np.float32)).softmax(-1)[..., :-1]
    per_window = torch.einsum("nqhw,nqc->nchw", torch.stack(inputs), probabilities)
    if len(geometry.windows) <= 1:
        return resize(per_window[0], geometry.image_size)
    total = torch.zeros(per_window.shape[1], *geometry.scaled_size)
    hits = torch.zeros(geometry.scaled_size)
    for (start, end), scores in zip(geometry.windows, per_window, strict=True):
        along = slice(start, end)
        where = (along, slice(None)) if geometry.axis == 0 else (slice(None), along)
        total[(slice(None), *where)] += scores
        hits[where] += 1
    return resize(total / hits, geometry.image_size)
