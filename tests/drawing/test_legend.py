from __future__ import annotations

import numpy as np
import pytest

from eomt_deploy.classes import make_classes
from eomt_deploy.drawing import legend
from eomt_deploy.drawing.legend import BACK, draw_legend
from eomt_deploy.drawing.regions import Region

CLASSES = make_classes(({"name": n, "thing": True} for n in ("sky-other-merged", "cat")), "test")
RED, BLUE, GREEN = (250, 10, 10), (10, 10, 250), (10, 250, 10)


def region(class_id, color, area, thing=True):
    name = "cat" if class_id else "sky"
    return Region(0, class_id, name, thing, 1, area, None, color)


@pytest.fixture
def written(monkeypatch):
    """The texts of a legend."""
    texts = []
    masks = legend.text_mask

    def record(text, size):
        texts.append(text)
        return masks(text, size)

    legend._width(tuple(i.name.removesuffix("-other-merged") for i in CLASSES), 12)
    monkeypatch.setattr(legend, "text_mask", record)
    return texts


def test_rows_have_names_numbers_and_shares(written):
    regions = [region(0, RED, 2500, thing=False), region(1, BLUE, 5000), region(1, GREEN, 1000)]
    picture = draw_legend(np.zeros((100, 100, 3), np.uint8), CLASSES, regions, 12)
    assert written == ["100.0%", "cat ×2", "60.0%", "sky", "25.0%"]
    assert (picture[:, :100] == 0).all()
    strip = picture[:, 100:]
    assert (strip[-1] == BACK).all()
    for color in (RED, BLUE, GREEN):
        assert (strip == color).all(axis=-1).sum() >= 70, color
    # Two instances share one square.
    assert (strip == RED).all(axis=-1).sum() == 12 * 12
    assert (strip == BLUE).all(axis=-1).sum() == (strip == GREEN).all(axis=-1).sum() == 72


def test_small_shares(written):
    regions = [region(0, RED, 3, thing=False), region(1, BLUE, 10)]
    draw_legend(np.zeros((100, 100, 3), np.uint8), CLASSES, regions, 12)
    assert written[1:] == ["cat", "0.1%", "sky", "<0.1%"]


def test_the_last_row_counts_what_does_not_fit(written):
    classes = make_classes(({"name": f"n{i}", "thing": False} for i in range(50)), "test")
    regions = [region(i, RED, 50 - i, thing=False) for i in range(50)]
    picture = draw_legend(np.zeros((100, 100, 3), np.uint8), classes, regions, 12)
    rows = (100 - 4) // 16
    assert written[-1] == f"+ {50 - (rows - 1)}"
    assert (picture[:, 100:] == RED).all(axis=-1).any(axis=1).sum() == 12 * (rows - 1)


def test_the_width_does_not_depend_on_the_image():
    image = np.zeros((100, 100, 3), np.uint8)
    shapes = {draw_legend(image, CLASSES, r, 12).shape for r in ([], [region(1, RED, 9)])}
    assert len(shapes) == 1


def test_the_width_holds_the_longest_name(monkeypatch):
    """The share is written to the right of the name, not over it."""
    name = "W" * 24
    classes = make_classes([{"name": name, "thing": False}], "test")
    places = []
    monkeypatch.setattr(
        legend, "_paste", lambda strip, mask, x, y, size: places.append((x, mask.shape[1]))
    )
    item = Region(0, 0, name, False, 1, 100 * 100, None, RED)
    draw_legend(np.zeros((100, 100, 3), np.uint8), classes, [item], 12)
    (x, width), (share_x, _) = places
    assert x + width <= share_x


def test_a_low_image_has_a_legend_of_its_height():
    for height in (1, 5, 20):
        image = np.zeros((height, 30, 3), np.uint8)
        regions = [region(0, RED, 5), region(1, BLUE, 5)]
        assert draw_legend(image, CLASSES, regions, 12).shape[0] == height
