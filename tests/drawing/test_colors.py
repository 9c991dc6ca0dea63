from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.drawing.colors import (
    DISTINCT,
    SEQUENCE,
    choose_colors,
    contrast,
    instance_color,
    label_colors,
    okabe_ito,
    to_oklab,
)

COLOR = st.tuples(*[st.integers(0, 255)] * 3)


def smallest_distance(colors) -> float:
    positions = to_oklab(colors)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return float(distances[np.triu_indices(len(colors), 1)].min(initial=9))


def hue(color) -> float:
    return colorsys.rgb_to_hsv(*color)[0]


def test_oklab_of_known_colours():
    """From Ottosson's page: https://bottosson.github.io/posts/oklab."""
    white, red = to_oklab([(255, 255, 255), (255, 0, 0)])
    assert white == pytest.approx([1, 0, 0], abs=1e-3)
    assert red == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


def test_consecutive_instances_have_other_hues():
    for number in range(100):
        difference = abs(hue(instance_color(number)) - hue(instance_color(number + 1)))
        assert min(difference, 1 - difference) > 0.15, number


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=SEQUENCE))
def test_the_instances_of_an_image_are_distinct(numbers):
    colors = choose_colors([None] * len(numbers), numbers, "classes")
    assert smallest_distance(colors) >= DISTINCT


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12))
def test_the_colours_for_colour_blind_people_are_distinct(numbers):
    colors = choose_colors([None] * len(numbers), numbers, "okabe-ito")
    assert smallest_distance(colors) >= DISTINCT
    assert set(colors) <= {okabe_ito(number) for number in range(21)}


@given(COLOR, st.integers(0, 40))
def test_instances_differ_from_the_stuff_around_them(grass, number):
    given_color, instance = choose_colors([grass, None], [2, number], "classes")
    assert given_color == grass
    assert smallest_distance([grass, instance]) >= DISTINCT


def test_an_instance_keeps_its_colour_when_others_appear():
    (alone,) = choose_colors([None], [4], "classes")
    together = choose_colors([None] * 8, list(range(8)), "classes")
    assert together[4] == alone


def test_many_instances():
    colors = choose_colors([None] * 60, list(range(60)), "classes")
    assert len(set(colors)) == SEQUENCE


@given(COLOR)
def test_labels_are_readable(color):
    back, text = label_colors(color)
    assert contrast(back, text) >= 5.5


def test_contrast_of_black_and_white():
    assert contrast((0, 0, 0), (255, 255, 255)) == contrast((255, 255, 255), (0, 0, 0))
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
