"""How stuff looks, and how light and camera change a whole scene.

Colours overlap between classes on purpose (sky and water, dry grass and sand, sand and wall): what
tells them apart is texture as much as colour. Canvases are float32 RGB [H, W, 3] in 0..255.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

# Two ends of a line in RGB for each class; a scene draws one point of it, then jitters it.
PALETTES: dict[str, tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]] = {
    "sky": (((90, 150, 230), (190, 215, 245)), ((230, 180, 150), (150, 160, 200))),
    "water": (((20, 70, 140), (60, 150, 180)), ((70, 120, 190), (120, 150, 170))),
    "grass": (((50, 120, 40), (120, 170, 60)), ((150, 160, 70), (90, 130, 70))),
    "sand": (((220, 195, 140), (240, 220, 180)), ((190, 160, 100), (200, 190, 160))),
    "wall": (((170, 80, 60), (190, 120, 90)), ((150, 150, 150), (200, 185, 160))),
}


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell_h: float, cell_w: float
) -> Float:
    """Gaussian noise [H, W] with unit variance at knots `cell_h` x `cell_w` pixels apart."""
    shape = (max(2, round(height / cell_h)), max(2, round(width / cell_w)))
    knots = rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(cv2.resize(knots, (width, height), interpolation=cv2.INTER_LINEAR))


def random_color(rng: np.random.Generator, name: str) -> Float:
    lines = PALETTES[name]
    first, last = lines[int(rng.random() < 0.35)]
    mix = rng.random()
    base = np.array(first, np.float32) * (1 - mix) + np.array(last, np.float32) * mix
    return base + rng.normal(0, 9, 3).astype(np.float32)


def paint_stuff(
    name: str, rng: np.random.Generator, height: int, width: int
) -> tuple[Float, Float]:
    """Texture [H, W], to be added to the colour [3], of a canvas full of one stuff class.

    The texture scales with the picture, not with its pixels: a large scene is a small one enlarged.
    """
    unit = min(height, width) / 160
    color = random_color(rng, name)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if name == "sky":  # a gradient towards the horizon, and soft clouds
        clouds = np.clip(smooth_noise(rng, height, width, 24 * unit, 48 * unit), 0, 2)
        shade = 28 * y + rng.uniform(0, 30) * clouds
    elif name == "water":  # flat waves: long in x, short in y
        waves = smooth_noise(rng, height, width, 3.5 * unit, 16 * unit)
        shade = rng.uniform(9, 16) * waves - 15 * y
    elif name == "grass":  # blades: short in x, long in y
        blades = smooth_noise(rng, height, width, 6 * unit, 2 * unit)
        patches = smooth_noise(rng, height, width, 30 * unit, 30 * unit)
        shade = rng.uniform(12, 20) * blades + 7 * patches
    elif name == "sand":  # fine isotropic grain on slow dunes
        grain = smooth_noise(rng, height, width, 1.5 * unit, 1.5 * unit)
        dunes = smooth_noise(rng, height, width, 40 * unit, 40 * unit)
        shade = rng.uniform(4, 9) * grain + 8 * dunes
    else:
        shade = _bricks(rng, height, width, unit)
    return np.asarray(shade, np.float32), color


def _bricks(rng: np.random.Generator, height: int, width: int, unit: float) -> Float:
    brick_h, brick_w = rng.uniform(9, 14) * unit, rng.uniform(18, 30) * unit
    rows = (np.arange(height, dtype=np.float32) + rng.uniform(0, brick_h)) / brick_h
    columns = (np.arange(width, dtype=np.float32) + rng.uniform(0, brick_w)) / brick_w
    row = np.floor(rows).astype(np.int32)
    column = columns[None] + 0.5 * (row % 2)[:, None]  # every other course is shifted by half
    tone = rng.standard_normal((int(row.max()) + 1, int(column.max()) + 1), dtype=np.float32)
    shade = 8 * tone[row[:, None], column.astype(np.int32)]
    joint = ((rows % 1)[:, None] < 1.8 * unit / brick_h) | (column % 1 < 1.8 * unit / brick_w)
    shade[joint] = rng.choice([-38.0, 34.0])
    return np.asarray(shade, np.float32)


def global_look(canvas: Float, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, a colour cast, blur and sensor noise; returns uint8 RGB [H, W, 3]."""
    height, width = canvas.shape[:2]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = 1 + float(strength * np.cos(angle)) * x + float(strength * np.sin(angle)) * y
    cast = (rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    picture = cv2.multiply(canvas, cv2.cvtColor(light, cv2.COLOR_GRAY2RGB))
    picture = cv2.transform(picture, np.diag(cast))
    if rng.random() < 0.3:
        sigma = rng.uniform(0.3, 0.9) * min(height, width) / 160
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))
    noise = np.empty(picture.shape, np.int8)
    cv2.setRNGSeed(int(rng.integers(2**31)))  # cv2's generator: 10 times faster than numpy's
    cv2.randn(noise, np.zeros(3), np.full(3, rng.uniform(0.5, 6)))
    picture = cv2.add(picture, noise, dtype=cv2.CV_32F)
    return np.asarray(cv2.convertScaleAbs(np.maximum(picture, 0)))  # rounds, saturates at 255
