"""Our scores with hotcoco compared with pycocotools and with the definitions."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt_deploy.classes import make_classes
from eomt_deploy.evaluation.scorers import InstanceScorer, PanopticScorer, SemanticScorer
from eomt_deploy.evaluation.truth import VOID, Truth, TruthSegment
from eomt_deploy.masks import encode_mask
from eomt_deploy.result import Segmentation
from eomt_deploy.segments import Segment

CLASSES = make_classes(
    [{"name": n, "thing": False} for n in ("sky", "grass")]
    + [{"name": n, "thing": True} for n in ("cat", "dog", "car")],
    "test",
)
# Blocks of 24 x 24 pixels: COCO's small masks have one or two blocks with holes, medium ones more.
SIZE = (96, 120)
BLOCK = np.ones((24, 24), int)


class Spec:
    classes = CLASSES


def shaped(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """The same masks with holes, so that no mask fills its box."""
    return np.where(rng.random(SIZE) < 0.3, VOID, ids)


def blocks(rng: np.random.Generator, values: int) -> np.ndarray:
    """Blocks of ids from -1 to values - 1, int [H, W]."""
    coarse = rng.integers(-1, values, (4, 5))
    return np.kron(coarse, BLOCK)


def disturbed(rng: np.random.Generator, ids: np.ndarray, values: int) -> np.ndarray:
    """The same ids, slightly shifted, with some blocks of another id."""
    moved = np.roll(ids, rng.integers(-8, 9), axis=1)
    other = blocks(rng, values)
    where = np.kron(rng.random((4, 5)) < 0.25, BLOCK).astype(bool)
    return np.where(where, other, moved)


def as_truth(ids, class_of, crowd=()) -> Truth:
    return Truth(
        SIZE,
        segments=tuple(
            TruthSegment(int(class_of[i]), encode_mask(ids == i), i in crowd)
            for i in np.unique(ids)
            if i != VOID
        ),
    )


def as_result(ids, class_of, task="panoptic", scores=None) -> Segmentation:
    # Renumber the ids, because segment ids must be consecutive.
    present = [int(i) for i in np.unique(ids) if i != VOID]
    labels = np.zeros(SIZE, np.uint8)
    segments = []
    for index, i in enumerate(present):
        labels[ids == i] = index + 1
        score = 1.0 if scores is None else float(scores[i])
        segments.append(Segment.from_mask(index, CLASSES[class_of[i]], score, ids == i))
    if task == "instance":
        return Segmentation("instance", SIZE, CLASSES, segments=tuple(segments))
    return Segmentation("panoptic", SIZE, CLASSES, labels=labels, segments=tuple(segments))


def merge_stuff(ids, class_of):
    """Stuff has at most one segment per class, in labels and in results."""
    ids = ids.copy()
    first: dict[int, int] = {}
    for i in np.unique(ids):
        if i != VOID and not CLASSES[class_of[i]].thing:
            ids[ids == i] = first.setdefault(int(class_of[i]), int(i))
    return ids


def literal_pq(pairs):
    """PQ of Kirillov et al. 2019 with panopticapi's handling of void and crowd, in percent."""
    counts = np.zeros((len(CLASSES), 4))
    for (truth, truth_class, crowd), (found, found_class) in pairs:
        void = truth == VOID
        matched_truth, matched_found = set(), set()
        for t in set(np.unique(truth)) - {VOID}:
            for f in set(np.unique(found)) - {VOID}:
                if t in crowd or truth_class[t] != found_class[f]:
                    continue
                a, b = truth == t, found == f
                union = (a | b).sum() - (b & void).sum()
                if (a & b).sum() / union > 0.5:
                    counts[truth_class[t]] += [(a & b).sum() / union, 1, 0, 0]
                    matched_truth.add(t)
                    matched_found.add(f)
        for t in set(np.unique(truth)) - {VOID} - matched_truth - set(crowd):
            counts[truth_class[t], 3] += 1
        for f in set(np.unique(found)) - {VOID} - matched_found:
            b = found == f
            ignored = (b & void).sum() + sum(
                (b & (truth == c)).sum() for c in crowd if truth_class[c] == found_class[f]
            )
            if ignored / b.sum() <= 0.5:
                counts[found_class[f], 2] += 1
    seen = counts[:, 1:].any(1)
    pq = counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2:].sum(1) / 2, 1e-9)
    return 100 * pq[seen].mean() if seen.any() else None


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 100_000),
    images=st.integers(1, 3),
    with_crowd=st.booleans(),
    empty=st.booleans(),
)
def test_pq_is_the_definition(seed, images, with_crowd, empty):
    rng = np.random.default_rng(seed)
    scorer = PanopticScorer(Spec)
    pairs, items = [], []
    for _ in range(images):
        class_of = rng.integers(0, len(CLASSES), 6)
        truth = merge_stuff(blocks(rng, 6), class_of)
        found = disturbed(rng, truth, 6)
        found_class = np.where(rng.random(6) < 0.8, class_of, rng.integers(0, len(CLASSES), 6))
        found = np.full(SIZE, VOID) if empty else merge_stuff(found, found_class)
        things = [i for i in range(6) if CLASSES[class_of[i]].thing and (truth == i).any()]
        # panopticapi keeps one crowd region for each class.
        crowd = things[:1] if with_crowd else []
        pairs.append(((truth, class_of, crowd), (found, found_class)))
        items.append(
            scorer.evidence(as_truth(truth, class_of, crowd), as_result(found, found_class))
        )
    wanted = literal_pq(pairs)
    assume(wanted is not None)
    assert scorer.scores(items).value == pytest.approx(wanted, abs=0.01)


def test_pq_of_a_perfect_and_a_foreign_result():
    ids = np.zeros(SIZE, int)
    ids[:, 60:] = 1
    scorer = PanopticScorer(Spec)
    truth = as_truth(ids, [0, 2])
    perfect = scorer.scores([scorer.evidence(truth, as_result(ids, [0, 2]))])
    assert perfect.summary["PQ"] == perfect.summary["PQ_things"] == 100
    assert perfect.summary["PQ_stuff"] == perfect.summary["SQ"] == perfect.summary["RQ"] == 100
    assert [row["class"] for row in perfect.per_class] == ["sky", "cat"]
    foreign = scorer.scores([scorer.evidence(truth, as_result(ids, [1, 3]))])
    assert foreign.value == 0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 100_000), images=st.integers(1, 4), with_crowd=st.booleans())
def test_ap_is_that_of_pycocotools(seed, images, with_crowd):
    rng = np.random.default_rng(seed)
    scorer = InstanceScorer(Spec)
    items = []
    truth_json: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    truth_json["categories"] = [{"id": c.id, "name": c.name} for c in CLASSES if c.thing]
    found_json = []
    for image in range(1, images + 1):
        class_of = rng.integers(2, len(CLASSES), 6)
        ids = shaped(rng, blocks(rng, 6))
        found = shaped(rng, disturbed(rng, ids, 6))
        found_class = np.where(rng.random(6) < 0.8, class_of, rng.integers(2, len(CLASSES), 6))
        scores = rng.permutation(6) / 7 + rng.random(6) / 100
        crowd = [0] if with_crowd else []
        truth, result = as_truth(ids, class_of, crowd), as_result(found, found_class, "instance", scores)  # noqa: E501  # fmt: skip
        items.append(scorer.evidence(truth, result))
        truth_json["images"].append({"id": image, "height": SIZE[0], "width": SIZE[1]})
        for segment in truth.segments:
            truth_json["annotations"].append(
                {
                    "id": len(truth_json["annotations"]) + 1,
                    "image_id": image,
                    "category_id": segment.class_id,
                    "segmentation": segment.rle,
                    "area": int(coco_mask.area(segment.rle)),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(segment.crowd),
                }
            )
        found_json += [
            {"image_id": image, "category_id": s.class_id, "segmentation": s.rle, "score": s.score}
            for s in result.segments
        ]
    assume(found_json)
    assume(any(not a["iscrowd"] for a in truth_json["annotations"]))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth_json
        coco.createIndex()
        oracle = COCOeval(coco, coco.loadRes(found_json), "segm")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    scores = scorer.scores(items)
    assert scores.summary["AP"] == pytest.approx(100 * oracle.stats[0], abs=0.01)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    for name, wanted in zip(names, oracle.stats[:6], strict=True):
        assert scores.summary.get(name, -100) == pytest.approx(100 * wanted, abs=0.01), name


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 100_000), images=st.integers(1, 4))
def test_miou_is_the_definition(seed, images):
    rng = np.random.default_rng(seed)
    scorer = SemanticScorer(Spec)
    confusion = np.zeros((5, 5))
    items = []
    for _ in range(images):
        truth = blocks(rng, 4).astype(np.int32)  # class 4 never occurs in the labels
        found = np.maximum(disturbed(rng, truth, 4), 0).astype(np.int32)
        result = Segmentation("semantic", SIZE, CLASSES, labels=found.astype(np.uint8))
        items.append(scorer.evidence(Truth(SIZE, class_map=truth), result))
        for t, f in zip(truth[truth != VOID], found[truth != VOID], strict=True):
            confusion[t, f] += 1
    assume(confusion.any())
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    wanted = 100 * (np.diag(confusion)[union > 0] / union[union > 0]).mean()
    scores = scorer.scores(items)
    assert scores.value == pytest.approx(wanted, abs=0.001)
    assert {row["class"] for row in scores.per_class} == {
        CLASSES[i].name for i in np.flatnonzero(union)
    }


def test_shuffled_labels_score_near_zero():
    truth = np.kron(np.arange(5).reshape(1, 5), np.ones((96, 24), int)).astype(np.int32)
    scorer = SemanticScorer(Spec)
    same = Segmentation("semantic", SIZE, CLASSES, labels=truth.astype(np.uint8))
    other = Segmentation("semantic", SIZE, CLASSES, labels=((truth + 1) % 5).astype(np.uint8))
    label = Truth(SIZE, class_map=truth)
    assert scorer.scores([scorer.evidence(label, same)]).value == 100
    assert scorer.scores([scorer.evidence(label, other)]).value == 0
