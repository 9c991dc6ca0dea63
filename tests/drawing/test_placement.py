from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_deploy.drawing.placement import place_labels
from eomt_deploy.drawing.regions import Region


def region(labels: np.ndarray, number: int, thing: bool, boxed: bool = True) -> Region:
    ys, xs = np.nonzero(labels == number)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return Region(number, 0, "", thing, 1, len(xs), box if boxed else None, (0, 0, 0))


def inside(rectangle, labels: np.ndarray) -> bool:
    x0, y0, x1, y1 = rectangle
    return 0 <= x0 < x1 <= labels.shape[1] and 0 <= y0 < y1 <= labels.shape[0]


def cut(labels: np.ndarray, rectangle) -> np.ndarray:
    x0, y0, x1, y1 = rectangle
    return labels[y0:y1, x0:x1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_labels_do_not_overlap_and_are_inside_the_image(seed, thing):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 1200, 2).tolist()
    cell = int(rng.integers(5, 200))
    labels = rng.integers(0, 20, (-(-height // cell), -(-width // cell))).astype(np.uint8)
    labels = labels.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    numbers = [n for n in np.unique(labels).tolist() if n]
    regions = [region(labels, n, thing and n % 2 == 0, boxed=thing) for n in numbers]
    sizes = [tuple(rng.integers(5, 120, 2).tolist()) for _ in regions]
    places = place_labels(labels, regions, sizes)
    assert len({place.region for place in places}) == len(places)
    for place in places:
        assert inside(place.rectangle, labels)
        x0, y0, x1, y1 = place.rectangle
        assert (x1 - x0, y1 - y0) == sizes[place.region]
    for first, second in itertools.combinations((p.rectangle for p in places), 2):
        apart = first[2] <= second[0] or second[2] <= first[0]
        assert apart or first[3] <= second[1] or second[3] <= first[1]


def test_a_label_is_inside_its_region_if_it_fits():
    labels = np.zeros((300, 400), np.uint8)
    labels[50:250, 30:60] = 1  # too narrow here
    labels[180:240, 30:230] = 1
    for thing, boxed in ((True, True), (False, True), (False, False)):
        (place,) = place_labels(labels, [region(labels, 1, thing, boxed)], [(100, 20)])
        assert (cut(labels, place.rectangle) == 1).all()
        assert place.target is None


def test_two_labels_share_a_region_of_two_parts():
    labels = np.ones((100, 300), np.uint8)
    labels[40:60, 110:190] = 2
    places = place_labels(
        labels, [region(labels, 1, False), region(labels, 2, True)], [(60, 18), (60, 18)]
    )
    for place in places:
        assert (cut(labels, place.rectangle) == place.region + 1).all()


def test_the_label_of_a_small_thing_is_beside_it():
    labels = np.zeros((300, 400), np.uint8)
    labels[140:160, 190:210] = 1
    (place,) = place_labels(labels, [region(labels, 1, True)], [(80, 18)])
    x0, _, x1, y1 = place.rectangle
    assert not cut(labels, place.rectangle).any()
    assert place.target is None
    assert y1 <= 140 <= y1 + 10
    assert x0 < 200 < x1


def test_at_the_top_of_the_image_it_is_below():
    labels = np.zeros((300, 400), np.uint8)
    labels[0:20, 190:210] = 1
    (place,) = place_labels(labels, [region(labels, 1, True)], [(80, 18)])
    assert 20 <= place.rectangle[1] <= 30


def test_a_label_does_not_cover_another_thing():
    """All places beside the small thing cover the thing around it, so a line leads out of it."""
    labels = np.zeros((400, 400), np.uint8)
    labels[150:250, 150:250] = 1
    labels[180:220, 180:220] = 2
    regions = [region(labels, 1, True), region(labels, 2, True)]
    places = place_labels(labels, regions, [None, (60, 22)])
    (place,) = places
    assert not cut(labels, place.rectangle).any()
    assert place.target is not None
    x, y = place.target
    assert labels[y, x] == 2


def test_what_has_no_place_is_left_out():
    labels = np.ones((30, 60), np.uint8)
    assert place_labels(labels, [region(labels, 1, True)], [(61, 10)]) == []
    labels[:, 30:] = 2
    regions = [region(labels, n, True) for n in (1, 2)]
    assert len(place_labels(labels, regions, [(60, 14)] * 2)) == 1


def test_tiny_regions_have_no_label():
    labels = np.zeros((500, 500), np.uint8)
    labels[100:108, 100:108] = 1
    labels[300:310, 300:310] = 2
    regions = [region(labels, 1, True), region(labels, 2, True)]
    assert [place.region for place in place_labels(labels, regions, [(40, 15)] * 2)] == [1]


def test_very_small_things_have_no_lines():
    """As above, a line is the only way to label the thing in the centre."""
    for side, count in ((24, 0), (40, 1)):
        labels = np.zeros((1000, 1000), np.uint8)
        labels[450:550, 450:550] = 1
        labels[500 : 500 + side, 500 : 500 + side] = 2
        regions = [region(labels, 1, True), region(labels, 2, True)]
        places = place_labels(labels, regions, [None, (60, 22)])
        assert len(places) == count


def test_a_class_covered_by_labels_has_no_label():
    labels = np.zeros((100, 100), np.uint8)
    labels[60:70, 45:55] = 1
    labels[50:56, 42:52] = 2  # where the label of the first one is
    regions = [region(labels, 1, True), region(labels, 2, False, boxed=False)]
    places = place_labels(labels, regions, [(30, 10), (5, 5)])
    assert [place.region for place in places] == [0]


def test_a_label_that_fits_nowhere_is_at_the_widest_part():
    labels = np.zeros((400, 400), np.uint8)
    labels[20:380, 40:60] = 1  # the pole
    labels[300:310, 200:240] = 1  # another part, which is not as high as the label
    (place,) = place_labels(labels, [region(labels, 1, False)], [(100, 20)])
    x0, _, x1, _ = place.rectangle
    assert x0 <= 50 < x1
