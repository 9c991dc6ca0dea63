"""What a precision costs, judged on images: error, label agreement, score, block by block.

The candidate runs as the hardware would, see :mod:`eomt_deploy.backends.emulation.engine`, and is
compared with the checkpoint in PyTorch. A budget searches for the blocks that must stay FP16.
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

SENSITIVITY_IMAGES = 4
"""Images on which each block is judged alone: enough to order the blocks."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judgement:
    """One candidate against the checkpoint.

    Attributes:
        images: judged on.
        error: RMS error of the logits over their RMS, of class or mask logits, the larger.
        agreement: share of pixels with the same label.
        score, reference: points of the task's metric with labels, of both; None without labels.
    """

    images: int
    error: float
    agreement: float
    score: float | None = None
    reference: float | None = None

    @property
    def drop(self) -> float:
        """Points lost: of the metric where there are labels, else of label agreement."""
        if self.score is not None and self.reference is not None:
            return self.reference - self.score
        return 100 * (1 - self.agreement)


@dataclass(frozen=True)
class Trial:
    """Some blocks kept in FP16, and what came of it.

    Attributes:
        kept: numbers of the blocks kept.
        share: share of the blocks' weights that is quantised.
    """

    kept: tuple[int, ...]
    share: float
    judgement: Judgement


@dataclass(frozen=True)
class Verdict:
    """The table that a quantised export ends with.

    Attributes:
        unit: what a point is: the metric's name, or ``label agreement``.
        budget: points that may be lost; None where none was given.
        sensitivity: what quantising each block alone costs, by its number.
        trials: everything that was tried.
        chosen: the trial that was exported.
    """

    unit: str
    budget: float | None
    sensitivity: Mapping[int, Judgement]
    trials: tuple[Trial, ...]
    chosen: Trial

    def to_dict(self) -> dict[str, Any]:
        """JSON; ``front`` holds the trials that no other one beats in both share and drop."""
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
        """The Pareto front, from the largest quantised share to the least."""
        best: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (-t.share, t.judgement.drop)):
            if not best or trial.judgement.drop < best[-1].judgement.drop:
                best.append(trial)
        return best


def _trial(trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "drop": trial.judgement.drop}


@dataclass
class Judge:
    """Holds candidates against the checkpoint, whose results are computed once.

    Args:
        reference: the checkpoint.
        samples: images; at least one.
        labelled: the samples have labels, and the score counts.
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
        """Judge on the first ``limit`` images; None takes all.

        Raises:
            VerificationError: the candidate gives NaN or infinity.
        """
        count = min(limit or len(self.samples), len(self.samples))
        squares = np.zeros((2, 2))  # class, mask; error, size
        agreement: list[float] = []
        evidence: list[Evidence] = []
        for index in range(count):
            seen = self._reference(index)
            found = run_in_parts(candidate, seen.inputs)
            for kind, (have, want) in enumerate(zip(found, seen.logits, strict=True)):
                if not np.isfinite(have).all():
                    raise VerificationError(
                        f"The {candidate.spec.precision} graph gives logits that are NaN or "
                        f"infinite on {self.samples[index].name}. Nothing was written.",
                        fix="Let the range analysis keep FP32 islands (no --no-islands).",
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
                    f"The labels of the {count} images judged on hold nothing that counts for "
                    f"{self.unit}.",
                    why="All of it is void, or of classes that the model does not know.",
                    fix="Pass other --data, or leave it out: agreement with the checkpoint is "
                    "judged then.",
                )
        return Judgement(
            images=count,
            error=float(np.sqrt(squares[:, 0] / np.maximum(squares[:, 1], 1e-30)).max()),
            agreement=float(np.mean(agreement)),
            score=score,
            reference=reference,
        )

    def _reference(self, index: int) -> _Seen:
        while len(self._seen) <= index:
            sample = self.samples[len(self._seen)]
            self.progress(f"the checkpoint on {sample.name}")
            image, truth = read_sample(sample) if self.labelled else (sample.image(), None)
            inputs, geometry = self._processor.preprocess(image)
            logits = run_in_parts(self.reference, inputs)
            result = self._processor.postprocess(*logits, geometry, image=sample.name)
            self._seen.append(
                _Seen(
                    inputs,
                    geometry,
                    # Half the memory; far finer than any difference that matters here.
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
"""Judges the graph with the given blocks kept in FP16, on so many images (None: all)."""


def search_blocks(
    measure: Measure,
    blocks: Sequence[int],
    share: Callable[[Sequence[int]], float],
    unit: str,
    budget: float | None,
    progress: Progress = lambda _: None,
) -> Verdict:
    """Measure what each block costs, and keep as many in FP16 as the budget demands.

    Args:
        measure: judges a choice of blocks.
        blocks: all blocks that can be quantised.
        share: share of weights that is quantised with the given blocks kept.
        unit: what a point is.
        budget: points that may be lost; None keeps none.

    Raises:
        VerificationError: FP16 everywhere already loses more than the budget.
    """
    sensitivity: dict[int, Judgement] = {}
    for block in blocks:
        progress(f"block {block} alone ({len(sensitivity) + 1} of {len(blocks)})")
        sensitivity[block] = measure([b for b in blocks if b != block], SENSITIVITY_IMAGES)
    # Whoever does most harm alone is kept first.
    order = sorted(blocks, key=lambda b: -sensitivity[b].error)
    trials: dict[int, Trial] = {}

    def attempt(count: int) -> Trial:
        if count not in trials:
            kept = tuple(sorted(order[:count]))
            progress(f"judging with {count} of {len(blocks)} blocks in FP16")
            trials[count] = Trial(kept, share(kept), measure(kept, None))
        return trials[count]

    chosen = attempt(0)
    if budget is not None and chosen.judgement.drop > budget:
        low, high = 0, len(blocks)
        if attempt(high).judgement.drop > budget:
            raise VerificationError(
                f"FP16 everywhere already loses {attempt(high).judgement.drop:.2f} points of "
                f"{unit}; the budget is {budget:g}. Nothing was written.",
                fix="Allow more, or export --precision fp16 or fp32.",
            )
        while high - low > 1:  # more blocks in FP16 lose less, but for noise
            middle = (low + high) // 2
            if attempt(middle).judgement.drop > budget:
                low = middle
            else:
                high = middle
        chosen = attempt(high)
    tried = tuple(trials[count] for count in sorted(trials))
    return Verdict(unit, budget, sensitivity, tried, chosen)
