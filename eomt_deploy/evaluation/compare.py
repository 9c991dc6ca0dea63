"""Two models side by side: how far apart their logits, labels, masks and scores are."""

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
from eomt_deploy.result import Segment, Segmentation
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.spec import ClassInfo

RESAMPLES = {"semantic": 500, "panoptic": 500, "instance": 100}
"""Bootstrap resamples; an AP over all images costs far more than the other sums."""
LEAST_RESAMPLES = 100
BOOTSTRAP_SECONDS = 60.0
"""Large data sets get fewer resamples, not minutes of silence."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Score of B minus score of A on labelled images, in percent points, with its interval."""

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """B held against A.

    Attributes:
        images: compared.
        logit_max, logit_mean: absolute logit error over A's largest logit; None where the two
            have different shapes.
        label_agreement: share of pixels with the same class (or the same void).
        mask_iou: mean IoU of each mask with the other's best mask of its class, both ways; None
            where both saw nothing.
        score: what B scores with A as the truth, percent; None where A saw nothing.
        metric: name of that score.
        labelled: scores of both against labels, where there are some.
        per_image: label agreement of each image.
        left_out: positions among the samples of images that could not be read, and why.
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
        a: taken as the truth.
        b: held against it.
        samples: images; their labels are read only where ``labelled`` is set. Without labels, an
            image that cannot be read is left out.
        labelled: also score both against the labels, with a paired bootstrap over images.
        progress: told the images done.

    Raises:
        UsageError: the models have different tasks or classes, or there are no images.
        ImageError: no image can be read.
        DatasetError: a label or labelled image is broken.
        VerificationError: a model gives NaN or infinite logits.
    """
    names = [[info.name for info in model.spec.classes] for model in (a, b)]
    if a.spec.task != b.spec.task or names[0] != names[1]:
        raise UsageError(
            f"{a.spec.name} ({a.spec.task}, {len(names[0])} classes) and {b.spec.name} "
            f"({b.spec.task}, {len(names[1])} classes) cannot be compared: task and class names "
            "must be the same."
        )
    if not samples:
        raise UsageError("There are no images to compare on.")
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
            if labelled:  # scores of fewer images are those of another data set
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
    """Difference of two scores with its bootstrap interval, both on the same drawn images.

    None where there is nothing to score; without an interval where there is one image.
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
        if done >= LEAST_RESAMPLES and time.monotonic() - began > BOOTSTRAP_SECONDS:
            break
        chosen = rng.integers(0, len(a), len(a))
        one, other = (scorer.scores([items[i] for i in chosen]).value for items in (a, b))
        if one is not None and other is not None:  # a draw without any labelled object
            drawn.append(other - one)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Difference(scorer.main, first, second, second - first, float(low), float(high))


def difference_picture(a: Segmenter, b: Segmenter, sample: Sample) -> list[Segmentation]:
    """Results of both on one image, and a third that marks where they differ."""
    image = sample.image()
    first, second = a.predict(image), b.predict(image)
    differs = label_map(first) != label_map(second)
    info = ClassInfo(0, "differs", True, (255, 0, 0))
    mark = Segment.from_mask(0, info, 1.0, differs)
    marked = Segmentation("instance", first.size, (info,), segments=(mark,), image=image)
    return [first, second, marked]


class _LogitErrors:
    """Running errors relative to the largest logit of A, class and mask logits apart."""

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
    """For each mask of the first, the IoU of the second's best mask of that class."""
    found = _visible(second)
    overlaps = []
    for region in _visible(first):
        same = [r.rle for r in found if r.class_id == region.class_id]
        iou = coco_mask.iou(same, [region.rle], [0]) if same else np.zeros(1)
        overlaps.append(float(iou.max()))
    return overlaps


def _visible(result: Segmentation) -> list[Segment]:
    return list(result.regions()) if result.class_map is not None else shown_segments(result)
