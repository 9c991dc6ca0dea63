"""Training batches, made on the fly in a process of their own: no scene is ever seen twice."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Generator
from queue import Full
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scenes import make_scene
from torch import Tensor

from eomt_deploy.processing.geometry import letterbox_size
from eomt_deploy.processing.resize import resize_image

CELL = 4  # mask logits have a quarter of the input's height and width


class Batch(NamedTuple):
    images: Tensor  # uint8 [B, 3, S, S]
    masks: Tensor  # float [B, N, (S/4)^2], the share of each cell that is covered; zeros fill up
    labels: Tensor  # int64 [B, N]
    counts: list[int]  # segments of each image, at most N


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]


def scene_size(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Half square, a quarter padded, a quarter resized: what the letterbox does to real pictures.

    The first two need no resizing and so cost least.
    """
    draw = rng.random()
    if draw < 0.5:
        return size, size
    if draw < 0.75:
        short = int(rng.integers(round(0.6 * size), size))
        return (size, short) if rng.random() < 0.5 else (short, size)
    height, width = rng.integers(round(0.9 * size), round(1.9 * size), 2)
    return int(height), int(width)


def letterbox(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> [size, size, 3]: the product's resize, zeros right and below."""
    height, width = letterbox_size((image.shape[0], image.shape[1]), (size, size))
    image = resize_image(image, (height, width))
    return np.pad(image, ((0, size - height), (0, size - width), (0, 0)))


def letterbox_ids(ids: np.ndarray, size: int) -> np.ndarray:
    """int32 segment ids [H, W] -> [size, size]; padding is 0, void."""
    height, width = letterbox_size((ids.shape[0], ids.shape[1]), (size, size))
    if (height, width) != ids.shape:
        source = ids.astype(np.float32)  # exact: there are few segments
        resized = cv2.resize(source, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        ids = resized.astype(np.int32)
    return np.pad(ids, ((0, size - height), (0, size - width)))


def make_arrays(seed: int, number: int, batch: int, size: int) -> Arrays:
    """The batch with this number; a function of its arguments alone, so a run can be resumed."""
    cells = size // CELL
    images, masks, labels = [], [], []
    for index in range(number * batch, (number + 1) * batch):
        rng = np.random.default_rng([seed, index, 2])
        scene = make_scene("train", seed, index, scene_size(rng, size))
        ids = letterbox_ids(scene.segment_ids, size)
        images.append(letterbox(scene.image, size).transpose(2, 0, 1))
        present = [s for s in scene.segments if (ids == s.id).any()]
        wanted = np.array([s.id for s in present], np.int32)
        inside = ids[None] == wanted[:, None, None]
        covered = inside.reshape(-1, cells, CELL, cells, CELL).sum((2, 4), dtype=np.uint8)
        masks.append(covered.reshape(-1, cells * cells))
        labels.append([s.category_id for s in present])
    counts = [len(x) for x in labels]
    all_masks = np.zeros((batch, max(counts), cells * cells), np.uint8)
    all_labels = np.zeros((batch, max(counts)), np.int64)
    for i, count in enumerate(counts):
        all_masks[i, :count], all_labels[i, :count] = masks[i], labels[i]
    return np.stack(images), all_masks, all_labels, counts


def _produce(queue: mp.Queue[Arrays], seed: int, first: int, batch: int, size: int) -> None:
    cv2.setNumThreads(1)
    parent, number = os.getppid(), first
    while True:
        arrays = make_arrays(seed, number, batch, size)
        number += 1
        while True:
            try:
                queue.put(arrays, timeout=5)
                break
            except Full:
                if os.getppid() != parent:  # a killed trainer must not leave its helper behind
                    return


def batches(seed: int, first: int, batch: int, size: int) -> Generator[Batch]:
    """Batches number `first`, `first + 1`, … without end."""
    context = mp.get_context("spawn")  # fork and PyTorch's threads do not go together
    queue: mp.Queue[Arrays] = context.Queue(maxsize=16)
    args = (queue, seed, first, batch, size)
    process = context.Process(target=_produce, args=args, daemon=True)
    process.start()
    try:
        while True:
            images, masks, labels, counts = queue.get(timeout=120)
            shares = torch.from_numpy(masks).float() / CELL**2
            yield Batch(torch.from_numpy(images), shares, torch.from_numpy(labels), counts)
    finally:
        process.terminate()
