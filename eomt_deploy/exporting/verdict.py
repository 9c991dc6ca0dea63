"""Accuracy loss of a precision on images, in total and for each block.

The candidate runs in an emulation of the hardware (:mod:`eomt_deploy.backends.emulation.engine`)
and is compared with the checkpoint in PyTorch: logits, labels and score. With a budget, a search
finds the blocks that must stay in FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from eomt_deploy.backends import Engine
from eomt_deploy.backends.engine import Outputs, run_in_parts
from eomt_deploy.errors import UsageError, VerificationError
from eomt_deploy.evaluation.evaluate import read_sample
from eomt_deploy.evaluation.scorers import Evidence, scorer_for
from eomt_deploy.evaluation.truth import Sample
from eomt_deploy.labels import label_map
from eomt_deploy.processing import Geometry, Processor

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judgement:
    """Comparison of a candidate with the checkpoint.

    Attributes:
        images: number of images compared.
        error: RMS error of the logits divided by their RMS; the larger one of class and mask
            logits.
        agreement: fraction of pixels with the same label.
        score: score of the candidate in points of the task's metric; None without labels.
        reference: score of the checkpoint; None without labels.
    """

    images: int
    error: float
    agreement: float
    score: float | None = None
    reference: float | None = None

    @property
    def drop(self) -> float:
        """Points lost: of the metric if there are labels, else of label agreement."""
        if self.score is not None and self.reference is not None:
            return self.reference - self.score
        return 100 * (1 - self.agreement)


@dataclass(frozen=True)
class Trial:
    """A choice of blocks that stay in FP16, and its result.

    Attributes:
        kept: numbers of the blocks in FP16.
        share: fraction of the blocks' weights that is quantised.
        judgement: comparison with the checkpoint.
    """

    kept: tuple[int, ...]
    share: float
    judgement: Judgement


@dataclass(frozen=True)
class Verdict:
    """Accuracy loss of a quantised export.

    Attributes:
        unit: unit of a point: name of the metric, or ``label agreement``.
        budget: maximum loss in points, if any.
        sensitivity: comparison with only one block quantised, by block number.
        trials: all trials.
        chosen: the trial that is exported.
    """

    unit: str
    budget: float | None
    sensitivity: Mapping[int, Judgement]
    trials: tuple[Trial, ...]
    chosen: Trial

    def to_dict(self) -> dict[str, Any]:
        """JSON; ``front`` is the Pareto front of share and drop."""
        return {
            "unit": self.unit,
            "budget": self.budget,
            "chosen": _trial(self.chosen),
            "sensitivity": {str(k): asdict(v) for k, v in self.sensitivity.items()},
            "trials": [_trial(trial) for trial in self.trials],
            "front": [_trial(trial) for trial in self.front],
        }

    @property
    def front(self) -> list[Trial]:
        """The Pareto front, from the largest quantised fraction to the smallest."""
        best: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (-t.share, t.judgement.drop)):
            if not best or trial.judgement.drop < best[-1].judgement.drop:
                best.append(trial)
        return best


def _trial(trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "drop": trial.judgement.drop}


@dataclass
class Judge:
    """Compares candidates with the checkpoint, whose results are computed only once.

    Args:
        reference: the checkpoint.
        samples: images; at least one.
        labelled: whether the samples have labels, so that the score can be computed.
        progress: called with a progress message for each image.
    """

    reference: Engine
    samples: Sequence[Sample]
    labelled: bool
    progress: Progress = lambda _: None
    _seen: list[_Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._processor = Processor(self.reference.spec)
        self._scorer = scorer_for(self.reference.spec)

    @property
    def unit(self) -> str:
        return self._scorer.main if self.labelled else "label agreement"

    def __call__(self, candidate: Engine, limit: int | None = None) -> Judgement:
        """Compare a candidate with the checkpoint on the first ``limit`` images; None: on all.

        Raises:
            UsageError: the labels do not contain anything that counts for the metric.
            VerificationError: logits of the candidate are NaN or infinite.
        """
        count = min(limit or len(self.samples), len(self.samples))
        squares = np.zeros((2, 2))  # rows: class, mask; columns: squared error, squared logits
        agreement: list[float] = []
        evidence: list[Evidence] = []
        for index in range(count):
            seen = self.reference_result(index)
            self.progress(f"comparing {self.samples[index].name} ({index + 1} of {count})")
            found = run_in_parts(candidate, seen.inputs)
            for kind, (have, want) in enumerate(zip(found, seen.logits, strict=True)):
                if not np.isfinite(have).all():
                    raise VerificationError(
                        f"The {candidate.spec.precision} graph gives logits that are NaN or "
                        f"infinite on {self.samples[index].name}. Nothing was written.",
                        fix="Leave out --no-islands, so that layers whose values exceed the FP16 "
                        "range stay in FP32.",
                    )
                want = want.astype(np.float32)
                squares[kind] += np.square(have - want).sum(), np.square(want).sum()
            result = self._processor.postprocess(*found, seen.geometry)
            agreement.append(float((label_map(result) == seen.labels).mean()))
            if self.labelled:
                evidence.append(self._scorer.evidence(seen.truth, result))
        score = reference = None
        if self.labelled:
            wanted = [seen.evidence for seen in self._seen[:count]]
            score = self._scorer.scores(evidence).value
            reference = self._scorer.scores(wanted).value
            if score is None or reference is None:
                raise UsageError(
                    f"The labels of the {count} images have no content that counts for "
                    f"{self.unit}.",
                    why="All of it is void, or of classes that the model does not have.",
                    fix="Pass other --data, or leave it out to measure label agreement.",
                )
        return Judgement(
            images=count,
            error=float(np.sqrt(squares[:, 0] / np.maximum(squares[:, 1], 1e-30)).max()),
            agreement=float(np.mean(agreement)),
            score=score,
            reference=reference,
        )

    def reference_result(self, index: int) -> _Seen:
        """What the checkpoint returns for an image; it is computed only once."""
        while len(self._seen) <= index:
            sample = self.samples[len(self._seen)]
            image, truth = read_sample(sample) if self.labelled else (sample.image(), None)
            inputs, geometry = self._processor.preprocess(image)
            logits = run_in_parts(self.reference, inputs)
            result = self._processor.postprocess(*logits, geometry, image=sample.name)
            self._seen.append(
                _Seen(
                    inputs,
                    geometry,
                    # FP16 halves the memory and is precise enough for this comparison.
                    (logits[0], logits[1].astype(np.float16)),
                    label_map(result),
                    truth,
                    self._scorer.evidence(truth, result) if truth else {},
                )
            )
        return self._seen[index]


@dataclass(frozen=True)
class _Seen:
    inputs: Any
    geometry: Geometry
    logits: Outputs
    labels: Any
    truth: Any
    evidence: Evidence


Measure = Callable[[Sequence[int], int | None], Judgement]
"""Compares the graph that keeps the given blocks in FP16, on a number of images (None: all)."""


def sensitivity_images(budget: float | None) -> int:
    """Number of images to measure each block alone: with a budget, they decide its rank."""
    return 1 if budget is None else 4


def whole(unit: str, judgement: Judgement) -> Verdict:
    """The verdict on a network with all blocks quantised, without a search."""
    trial = Trial((), 1.0, judgement)
    return Verdict(unit, None, {}, (trial,), trial)


def search_blocks(
    measure: Measure,
    blocks: Sequence[int],
    share: Callable[[Sequence[int]], float],
    unit: str,
    budget: float | None,
    progress: Progress = lambda _: None,
    *,
    rank: bool = True,
) -> Verdict:
    """Measure the accuracy loss of each block, and keep as many in FP16 as the budget requires.

    Args:
        measure: compares a choice of blocks with the checkpoint.
        blocks: all blocks that can be quantised.
        share: fraction of weights that is quantised if the given blocks stay in FP16.
        unit: unit of a point.
        budget: maximum loss in points; None quantises all blocks.
        progress: called with progress messages.
        rank: measure each block alone, too; required with a budget.

    Raises:
        VerificationError: the loss exceeds the budget even with all blocks in FP16.
    """
    sensitivity: dict[int, Judgement] = {}
    for block in blocks if rank else ():
        progress(f"measuring block {block} ({len(sensitivity) + 1} of {len(blocks)})")
        sensitivity[block] = measure([b for b in blocks if b != block], sensitivity_images(budget))
    # Blocks with the largest error are kept first.
    order = sorted(sensitivity, key=lambda b: -sensitivity[b].error)
    trials: dict[int, Trial] = {}

    def attempt(count: int) -> Trial:
        if count not in trials:
            kept = tuple(sorted(order[:count]))
            progress(f"measuring with {count} of {len(blocks)} blocks in FP16")
            trials[count] = Trial(kept, share(kept), measure(kept, None))
        return trials[count]

    chosen = attempt(0)
    if budget is not None and chosen.judgement.drop > budget:
        low, high = 0, len(blocks)
        if attempt(high).judgement.drop > budget:
            raise VerificationError(
                f"Even with all blocks in FP16, {attempt(high).judgement.drop:.2f} points of "
                f"{unit} are lost, but the budget is {budget:g}. Nothing was written.",
                fix="Increase --budget, or use --precision fp16 or fp32.",
            )
        while high - low > 1:  # apart from noise, more blocks in FP16 lose less
            middle = (low + high) // 2
            if attempt(middle).judgement.drop > budget:
                low = middle
            else:
                high = middle
        chosen = attempt(high)
    tried = tuple(trials[count] for count in sorted(trials))
    return Verdict(unit, budget, sensitivity, tried, chosen)
