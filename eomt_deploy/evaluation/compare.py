"""Comparison of two models: differences of logits, labels, masks and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask

from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.evaluation.evaluate import read_sample
from eomt_deploy.evaluation.scorers import Evidence, Scorer, scorer_for
from eomt_deploy.evaluation.truth import Sample, Truth, TruthSegment
from eomt_deploy.labels import label_map, shown_segments
from eomt_deploy.result import Segmentation
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.segments import Segment
from eomt_deploy.spec import ClassInfo

RESAMPLES = {"semantic": 500, "panoptic": 500, "instance": 100}
"""Number of bootstrap resamples; AP takes much longer to compute than the other metrics."""
MIN_RESAMPLES = 100
BOOTSTRAP_SECONDS = 60.0
"""Time limit of the bootstrap; after it, at least ``LEAST_RESAMPLES`` are used."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Scores of A and B on labelled images in percent, and B minus A in percentage points.

    Attributes:
        low, high: confidence interval of the difference; None with a single image.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Result of the comparison of model B with model A.

    Attributes:
        images: number of compared images.
        logit_max, logit_mean: maximum and mean absolute logit error over A's largest logit; None
            if the logits have different shapes.
        label_agreement: share of pixels with the same class or both void, 0 to 1.
        mask_iou: mean IoU of each mask with the other model's best mask of the same class, in both
            directions, 0 to 1; None if both predict no mask.
        score: score of B with A's results as ground truth, in percent; None if A predicts nothing.
        metric: name of that score.
        labelled: scores of both models against labels; None without labels.
        per_image: name and label agreement of each image.
        left_out: images that could not be read: index among the samples, and the reason.
    """

    images: int
    logit_max: float | None
    logit_mean: float | None
    label_agreement: float
    mask_iou: float | None
    score: float | None
    metric: str
    labelled: Difference | None
    per_image: tuple[tuple[str, float], ...]
    left_out: tuple[tuple[int, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    a: Segmenter,
    b: Segmenter,
    samples: Sequence[Sample],
    *,
    labelled: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Run both models on the same images.

    Args:
        a: reference model.
        b: model that is compared with it.
        samples: images; labels are only read if ``labelled`` is set.
        labelled: whether to also score both models against the labels, with a paired bootstrap
            over images. If it is not set, images that cannot be read are left out.
        progress: called with the number of finished images.

    Raises:
        UsageError: the models have different tasks or classes, or there are no images.
        ImageError: no image can be read.
        DatasetError: a label or labelled image is not valid.
        VerificationError: a model returns NaN or infinite logits.
    """
    names = [[info.name for info in model.spec.classes] for model in (a, b)]
    if a.spec.task != b.spec.task or names[0] != names[1]:
        raise UsageError(
            f"{a.spec.name} ({a.spec.task}, {len(names[0])} classes) and {b.spec.name} "
            f"({b.spec.task}, {len(names[1])} classes) cannot be compared.",
            why="Their tasks or class names differ.",
            fix="Compare two models with the same task and the same class names.",
        )
    if not samples:
        raise UsageError(
            "At least 1 image is needed to compare models, got no images.",
            fix="Pass at least one image.",
        )
    scorer = scorer_for(a.spec)
    errors = _LogitErrors()
    agreement: list[tuple[str, float]] = []
    overlaps: list[float] = []
    against_a: list[Evidence] = []
    unreadable: list[tuple[int, ImageError]] = []
    evidence: tuple[list[Evidence], list[Evidence]] = ([], [])
    for index, sample in enumerate(samples):
        try:
            image, truth = read_sample(sample) if labelled else (sample.image(), None)
            logits_a, logits_b = a.logits(image), b.logits(image)
        except ImageError as error:
            if labelled:  # a score without this image would not be comparable
                raise
            unreadable.append((index, error))
            progress(index + 1)
            continue
        first = a.processor.postprocess(*logits_a, image=sample.name)
        second = b.processor.postprocess(*logits_b, image=sample.name)
        errors.add(logits_a[:2], logits_b[:2])
        same = float((label_map(first) == label_map(second)).mean())
        agreement.append((sample.name, same))
        overlaps += _best_overlaps(first, second) + _best_overlaps(second, first)
        against_a.append(scorer.evidence(_as_truth(first), second))
        if truth is not None:
            evidence[0].append(scorer.evidence(truth, first))
            evidence[1].append(scorer.evidence(truth, second))
        progress(index + 1)
    if not agreement:
        raise unreadable[0][1]
    return Comparison(
        images=len(agreement),
        logit_max=errors.largest(),
        logit_mean=errors.mean(),
        label_agreement=float(np.mean([same for _, same in agreement])),
        mask_iou=float(np.mean(overlaps)) if overlaps else None,
        score=scorer.scores(against_a).value,
        metric=scorer.main,
        labelled=paired_difference(scorer, *evidence, RESAMPLES[a.spec.task]) if labelled else None,
        per_image=tuple(agreement),
        left_out=tuple((index, _naming(samples[index], error)) for index, error in unreadable),
    )


def _naming(sample: Sample, error: ImageError) -> str:
    return error.what if sample.name in error.what else f"{sample.name}: {error.what}"


def paired_difference(
    scorer: Scorer, a: Sequence[Evidence], b: Sequence[Evidence], resamples: int
) -> Difference | None:
    """Difference of two scores, with the interval of a paired bootstrap over images.

    Args:
        scorer: scorer of the task.
        a, b: evidence of each image, in the same order.
        resamples: number of bootstrap resamples.

    Returns:
        the difference, without an interval if there is one image; None if nothing can be scored.
    """
    first, second = scorer.scores(a).value, scorer.scores(b).value
    if first is None or second is None:
        return None
    if len(a) < 2:
        return Difference(scorer.main, first, second, second - first, None, None)
    rng = np.random.default_rng(0)
    drawn = []
    began = time.monotonic()
    for done in range(resamples):
        if done >= MIN_RESAMPLES and time.monotonic() - began > BOOTSTRAP_SECONDS:
            break
        chosen = rng.integers(0, len(a), len(a))
        one, other = (scorer.scores([items[i] for i in chosen]).value for items in (a, b))
        if one is not None and other is not None:  # None if no drawn image has a labelled object
            drawn.append(other - one)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Difference(scorer.main, first, second, second - first, float(low), float(high))


def difference_picture(a: Segmenter, b: Segmenter, sample: Sample) -> list[Segmentation]:
    """Results of both models on one image, and a third result that marks their difference."""
    image = sample.image()
    first, second = a.predict(image), b.predict(image)
    differs = label_map(first) != label_map(second)
    info = ClassInfo(0, "differs", True, (255, 0, 0))
    mark = Segment.from_mask(0, info, 1.0, differs)
    marked = Segmentation("instance", first.size, (info,), segments=(mark,), image=image)
    return [first, second, marked]


class _LogitErrors:
    """Accumulated errors relative to A's largest logit, separate for class and mask logits."""

    def __init__(self) -> None:
        self._largest = [0.0, 0.0]
        self._error = [0.0, 0.0]
        self._sum = [0.0, 0.0]
        self._count = [0, 0]
        self._comparable = True

    def add(self, a: Any, b: Any) -> None:
        for kind, (x, y) in enumerate(zip(a, b, strict=True)):
            if x.shape != y.shape:
                self._comparable = False
                continue
            error = np.abs(x - y)
            self._largest[kind] = max(self._largest[kind], float(np.abs(x).max()))
            self._error[kind] = max(self._error[kind], float(error.max()))
            self._sum[kind] += float(error.sum())
            self._count[kind] += error.size

    def largest(self) -> float | None:
        return self._relative(self._error)

    def mean(self) -> float | None:
        return self._relative([s / max(n, 1) for s, n in zip(self._sum, self._count, strict=True)])

    def _relative(self, errors: Sequence[float]) -> float | None:
        if not self._comparable:
            return None
        return max(e / max(s, 1e-12) for e, s in zip(errors, self._largest, strict=True))


def _as_truth(result: Segmentation) -> Truth:
    if result.class_map is not None:
        return Truth(result.size, class_map=result.class_map)
    segments = tuple(TruthSegment(s.class_id, s.rle) for s in shown_segments(result))
    return Truth(result.size, segments=segments)


def _best_overlaps(first: Segmentation, second: Segmentation) -> list[float]:
    """IoU of each mask of the first result with the second's best mask of the same class."""
    found = _visible(second)
    overlaps = []
    for region in _visible(first):
        same = [r.rle for r in found if r.class_id == region.class_id]
        iou = coco_mask.iou(same, [region.rle], [0]) if same else np.zeros(1)
        overlaps.append(float(iou.max()))
    return overlaps


def _visible(result: Segmentation) -> list[Segment]:
    return list(result.regions()) if result.class_map is not None else shown_segments(result)
