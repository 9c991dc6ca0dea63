"""Random EoMT-S weights whose heads have 20 certain queries for one image.

Nothing has to be downloaded. But the heads of a random network are certain of nothing, and
post-processing would have no segments to work on. So the last layers of the class and mask heads
are fitted to the features of the image: 20 queries divide it among them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image

SEGMENTS = 20
TASKS = {"panoptic": (640, 200, 133), "instance": (640, 200, 80), "semantic": (512, 100, 150)}
"""Side of the network's input in pixels, number of queries, and number of classes, by task."""
THINGS = 80
"""Classes of the panoptic network below this number are things."""
STEPS = 300
"""Gradient steps that fit the masks; then 20 segments cover most of the image."""


def processor_of(task: str) -> Any:
    """transformers' pre- and post-processing, with the settings of the published checkpoints."""
    side, split = TASKS[task][0], task == "semantic"
    size = {"shortest_edge": side, "longest_edge": None if split else side}
    return transformers.EomtImageProcessorPil(do_split_image=split, do_pad=not split, size=size)


def write(task: str, image: Path, folder: Path) -> None:
    """Write the network as a folder of transformers, fitted to an image file."""
    side, queries, classes = TASKS[task]
    torch.manual_seed(0)
    model = transformers.EomtForUniversalSegmentation(
        transformers.EomtConfig(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_blocks=3,
            num_queries=queries, image_size=side, patch_size=16, num_register_tokens=4,
            id2label={i: f"class {i}" for i in range(classes)},
        )
    ).eval()  # fmt: skip
    model.attn_mask_probs.zero_()  # disables masked attention, which takes twice as long
    picture = Image.open(image).convert("RGB")
    windows = _windows(task, picture)
    with torch.inference_mode():
        _smooth_positions(model, side // 16)
        _fit(model, windows, picture.size[::-1])
    model.save_pretrained(folder)


class Window(NamedTuple):
    """An input of the network [3, side, side], and where its pixels are in the image.

    Pixel (y, x) of the window is at (y / scale_y, (x + start) / scale_x) in the image.
    """

    pixels: torch.Tensor
    scale_y: float
    scale_x: float
    start: int


def _windows(task: str, picture: Image.Image) -> list[Window]:
    """The inputs that the projects make from one image: the heads must work with all of them.

    The projects pad with black (as the official code) or with the mean colour (LightlyTrain), or
    stretch the image (Geti; LibreYOLO's exported files).
    """
    side = TASKS[task][0]
    prepare = processor_of(task)
    scale = side / (min if task == "semantic" else max)(picture.size)
    inputs = prepare(images=picture, return_tensors="pt")
    starts = [int(offset[1]) for offset in inputs.get("patch_offsets") or []] or [0]
    found = [
        Window(pixels, scale, scale, start)
        for pixels, start in zip(inputs["pixel_values"], starts, strict=True)
    ]
    if task != "semantic":
        padded = found[0].pixels.clone()
        padded[:, round(scale * picture.height) :] = 0
        padded[:, :, round(scale * picture.width) :] = 0
        found.append(found[0]._replace(pixels=padded))
    square = picture.resize((side, side), Image.Resampling.BILINEAR)
    stretched = prepare(images=square, return_tensors="pt")["pixel_values"][0]
    found.append(Window(stretched, side / picture.height, side / picture.width, 0))
    return found


def _smooth_positions(model: Any, cells: int) -> None:
    """Position embeddings from waves: the features of a pixel must depend on where it is."""
    place = torch.linspace(0, 1, cells)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    width = model.config.hidden_size
    frequency = torch.randn(2, width) * 6
    phase = torch.rand(width) * 2 * math.pi
    waves = torch.sin(rows[..., None] * frequency[0] + columns[..., None] * frequency[1] + phase)
    model.embeddings.position_embeddings.weight.copy_(waves.reshape(-1, width))


def _fit(model: Any, windows: list[Window], size: tuple[int, int]) -> None:
    """Fit the last layers of both heads, for an image of ``size`` (H, W)."""
    pixels = torch.stack([window.pixels for window in windows])
    tokens = model(pixel_values=pixels).last_hidden_state
    count, side = model.config.num_queries, pixels.shape[-1]
    query = tokens[:, :count]
    rest = tokens[:, count + model.embeddings.num_prefix_tokens :].transpose(1, 2)
    cells = model.grid_size
    features = model.upscale_block(rest.reshape(len(pixels), -1, *cells))  # [N, D, side/4, side/4]
    stride = side / features.shape[-1]

    places = torch.rand(SEGMENTS, 2, 1, 1) * torch.tensor(size)[:, None, None]
    middle = (torch.arange(features.shape[-1]) + 0.5) * stride
    masks = []
    for window in windows:
        rows, columns = torch.meshgrid(
            middle / window.scale_y, (middle + window.start) / window.scale_x, indexing="ij"
        )
        distance = torch.hypot(rows - places[:, 0], columns - places[:, 1])
        nearest = distance == distance.amin(0)
        masks.append(nearest.float().flatten(1))
    inside = torch.cat(masks, 1)
    known = features.transpose(0, 1).flatten(1)  # [D, pixels of all windows]
    embeddings = torch.zeros(count, len(known))  # of "no object": not certain anywhere
    embeddings[:SEGMENTS] = _fit_masks(known, inside)

    # The chosen queries are certain, all others are "no object".
    logits = torch.zeros(count, model.config.num_labels + 1)
    logits[SEGMENTS:, -1] = 12
    classes = torch.randperm(model.config.num_labels)[:SEGMENTS].sort().values
    logits[torch.arange(SEGMENTS), classes] = 12
    _fit_layer(model.class_predictor, query, logits)
    head = model.mask_head
    hidden = head.activation(head.fc2(head.activation(head.fc1(query))))
    _fit_layer(head.fc3, hidden, embeddings)


def _fit_masks(features: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Embeddings [S, D] whose products with ``features`` [D, P] are above 0 ``inside`` [S, P]."""
    with torch.inference_mode(False), torch.enable_grad():
        known, wanted = features.clone(), inside.clone()
        found = torch.zeros(len(wanted), len(known), requires_grad=True)
        optimizer = torch.optim.Adam([found], lr=0.03)
        for _ in range(STEPS):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(found @ known, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return found.detach()


def _fit_layer(layer: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Make a linear layer return ``outputs`` [Q, C] for each ``inputs[n]`` of [N, Q, D]."""
    flat = inputs.flatten(0, 1)
    with_bias = torch.cat([flat, torch.ones(len(flat), 1)], 1)
    solution = _solve(with_bias, outputs.repeat(len(inputs), 1))
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])


def _solve(known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """X of ``known @ X = wanted``: ridge regression in FP64."""
    a, b = known.double(), wanted.double()
    square = a.T @ a
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square + ridge, a.T @ b).float()
