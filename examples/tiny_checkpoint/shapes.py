"""The things: where they lie, what outline they have and how they are shaded.

A class is told by its outline and its parts. Colour only helps: most things take a colour that is
usual for their class, the others take any colour at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from textures import Float, smooth_noise

USUAL_HUE = {"ball": 0, "crate": 16, "star": 28, "tree": 60, "ring": 150, "capsule": 100}
SHIFT = 4  # cv2 draws with 1/16 pixel precision


@dataclass(frozen=True)
class Thing:
    """One thing in its window of the canvas; u and v are its own axes, about -1..1 inside."""

    name: str
    window: tuple[slice, slice]  # rows, columns of the canvas
    alpha: np.ndarray  # uint8 [h, w], anti-aliased outline
    mask: np.ndarray  # bool [h, w], what belongs to it
    u: Float  # [h, w], to its right
    v: Float  # [h, w], downwards
    radius: float  # pixels


def place_thing(name: str, rng: np.random.Generator, height: int, width: int) -> Thing:
    radius = float(min(height, width) * rng.uniform(0.085, 0.22))
    centre_x, centre_y = rng.uniform(0.04, 0.96) * width, rng.uniform(0.12, 0.96) * height
    upright = name == "tree"  # trees grow upwards, everything else lies as it fell
    angle = rng.uniform(-0.2, 0.2) if upright else rng.uniform(-np.pi, np.pi)
    reach = 1.15 * radius
    top, left = max(0, int(centre_y - reach)), max(0, int(centre_x - reach))
    bottom = min(height, int(centre_y + reach) + 2)
    right = min(width, int(centre_x + reach) + 2)
    x = (np.arange(left, right, dtype=np.float32) - centre_x)[None] / radius
    y = (np.arange(top, bottom, dtype=np.float32) - centre_y)[:, None] / radius
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    alpha = np.zeros((bottom - top, right - left), np.uint8)
    origin = np.array([centre_x - left, centre_y - top])
    for polygon, value in outline(name, rng):
        turned = polygon @ np.array([[cos, sin], [-sin, cos]]) * radius + origin
        points = np.round(turned * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(alpha, [points], value, cv2.LINE_AA, SHIFT)
    return Thing(
        name,
        (slice(top, bottom), slice(left, right)),
        alpha,
        alpha >= 128,
        cos * x + sin * y,
        cos * y - sin * x,
        radius,
    )


def outline(name: str, rng: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    """Polygons in the thing's own axes, each filled (255) or cut out (0), in drawing order."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if name == "ball":
        return [(circle * 0.9, 255)]
    if name == "ring":
        return [(circle, 255), (circle * rng.uniform(0.45, 0.62), 0)]
    if name == "crate":
        a, b = 0.8, rng.uniform(0.6, 0.8)
        return [(np.array([[-a, -b], [a, -b], [a, b], [-a, b]]), 255)]
    if name == "star":
        tips = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.48), 1.08)
        return [(np.stack([np.sin(tips), -np.cos(tips)], 1) * reach[:, None], 255)]
    if name == "tree":
        trunk = np.array([[-0.16, 0.4], [0.16, 0.4], [0.16, 1.0], [-0.16, 1.0]])
        w = rng.uniform(0.65, 0.85)
        lower = np.array([[0.0, -0.55], [w, 0.6], [-w, 0.6]])
        upper = np.array([[0.0, -1.05], [0.75 * w, 0.05], [-0.75 * w, 0.05]])
        return [(trunk, 255), (lower, 255), (upper, 255)]
    half = rng.uniform(0.34, 0.44)  # capsule: two half circles and what lies between them
    ends = circle * half + np.where(circle[:, :1] >= 0, 1.0, -1.0) * np.array([1.02 - half, 0.0])
    return [(cv2.convexHull(ends.astype(np.float32))[:, 0].astype(np.float64), 255)]


def draw_thing(canvas: Float, thing: Thing, rng: np.random.Generator) -> None:
    """Draw the shadow, then the thing, into the canvas (float32 RGB [H, W, 3], in place)."""
    _draw_shadow(canvas, thing, rng)
    color = _color(thing.name, rng)
    u, v = thing.u, thing.v
    shade = 1 + np.float32(rng.uniform(-0.2, 0.2)) * u + np.float32(rng.uniform(-0.2, 0.2)) * v
    second = shade * np.float32(0.65)
    if thing.name == "ball":  # a round highlight
        light_u, light_v = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
        shade = 1.3 - 0.65 * np.hypot(u - light_u, v - light_v)
    elif thing.name == "crate":  # planks
        shade = np.where((v * rng.uniform(2.5, 3.5)) % 1 < 0.2, second, shade)
    elif thing.name == "star":  # lighter in the middle
        shade = shade * (1.25 - 0.4 * np.hypot(u, v))
    elif thing.name == "tree":  # dark, lively foliage
        leaves = smooth_noise(rng, u.shape[0], u.shape[1], thing.radius / 7, thing.radius / 7)
        shade = 0.75 * shade + 0.13 * leaves
    elif thing.name == "ring":  # round in section
        shade = shade * (1.25 - 1.8 * np.abs(np.hypot(u, v) - 0.77))
    surface = shade[:, :, None] * color
    if thing.name == "capsule":  # two halves of two colours
        surface[u > 0] = shade[u > 0][:, None] * _color(thing.name, rng)
    elif thing.name == "tree":
        surface[v > 0.6] = np.array([95, 65, 40], np.float32)
    surface = np.clip(surface, 0, 255).astype(np.float32)
    opacity = cv2.cvtColor(thing.alpha, cv2.COLOR_GRAY2RGB).astype(np.float32) * (1 / 255)
    view = canvas[thing.window]
    view += opacity * (surface - view)


def _draw_shadow(canvas: Float, thing: Thing, rng: np.random.Generator) -> None:
    """Darken a little of the ground beside the thing; a shadow belongs to what it falls on."""
    shift = thing.radius * rng.uniform(0.05, 0.2, 2) * rng.choice([-1, 1], 2)
    height, width = thing.alpha.shape
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    shadow = cv2.warpAffine(thing.alpha, move, (width, height))
    shadow = cv2.blur(shadow, (5, 5)).astype(np.float32)
    shadow = 1 - float(rng.uniform(0.1, 0.45) / 255) * shadow
    canvas[thing.window] *= cv2.cvtColor(shadow, cv2.COLOR_GRAY2RGB)


def _color(name: str, rng: np.random.Generator) -> Float:
    usual = rng.random() < 0.6
    hue = (USUAL_HUE[name] + rng.normal(0, 7)) % 180 if usual else rng.uniform(0, 180)
    saturation, value = rng.uniform(110, 240), rng.uniform(120, 245)
    pixel = np.array([[[int(hue) % 180, int(saturation), int(value)]]], np.uint8)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0], np.float32)
