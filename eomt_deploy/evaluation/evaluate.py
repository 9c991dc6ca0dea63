"""Run a model over labelled data: resumable, with a running score and the worst images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from eomt_deploy.errors import DatasetError, OutputError, UsageError
from eomt_deploy.evaluation.scorers import EVALUATOR, Evidence, Scores, scorer_for
from eomt_deploy.evaluation.truth import Dataset, Sample
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.spec import Thresholds

SCHEMA = 1
RUNNING_SCORE_SHARE = 20
"""The running score is computed again once this many times its own cost has passed."""

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class EvalReport:
    """Scores of one artifact on one data set.

    Attributes:
        scores: overall and per class, percent.
        per_image: main score of each image alone, in the order of the data.
        facts: artifact, data, counts, thresholds, evaluator.
    """

    scores: Scores
    per_image: tuple[tuple[str, float | None], ...]
    facts: dict[str, Any]

    def worst(self, count: int) -> list[str]:
        """Names of the images with the lowest scores, worst first."""
        scored = [(score, name) for name, score in self.per_image if score is not None]
        return [name for _, name in sorted(scored)[:count]]

    def to_dict(self) -> dict[str, Any]:
        """JSON: the overall numbers at the top, then everything behind them."""
        return {
            "schema": SCHEMA,
            **self.scores.summary,
            **self.facts,
            "per_class": [dict(row) for row in self.scores.per_class],
            "per_image": [{"image": name, "score": score} for name, score in self.per_image],
        }


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    limit: int | None = None,
    thresholds: Thresholds | None = None,
    resume: Path | None = None,
    progress: Progress = lambda _done, _score: None,
) -> EvalReport:
    """Score a model.

    Args:
        segmenter: the model.
        dataset: labelled data of its task.
        limit: only the first so many images.
        thresholds: run-time thresholds; None takes the model's defaults.
        resume: JSON-lines file that keeps what each image contributed; an unfinished one of the
            same evaluation is continued.
        progress: told the images done and the running score in words.

    Raises:
        DatasetError: a label or image is broken or does not fit; the file is named.
        UsageError: ``resume`` belongs to another evaluation.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves nothing to evaluate.")
    samples = dataset.samples[:limit]
    scorer = scorer_for(segmenter.spec)
    used = thresholds or segmenter.spec.thresholds
    facts = _facts(segmenter, dataset, samples, used)
    items: list[Evidence] = []
    log: TextIO | None = None
    if resume is not None:
        items, log = _open_log(resume, facts, len(samples))
    shown, next_score = "", 0.0
    progress(len(items), shown)
    try:
        for sample in samples[len(items) :]:
            item = _one(segmenter, sample, used, scorer.evidence)
            items.append(item)
            if log is not None:
                log.write(json.dumps(item) + "\n")
                log.flush()
            now = time.monotonic()
            if now >= next_score:
                score = scorer.scores(items).value
                shown = "" if score is None else f"{scorer.main} {score:.2f}"
                next_score = now + RUNNING_SCORE_SHARE * (time.monotonic() - now)
            progress(len(items), shown)
    finally:
        if log is not None:
            log.close()
    per_image = ((s.name, scorer.scores([i]).value) for s, i in zip(samples, items, strict=True))
    return EvalReport(scorer.scores(items), tuple(per_image), facts)


def _one(
    segmenter: Segmenter,
    sample: Sample,
    thresholds: Thresholds,
    evidence: Callable[..., Evidence],
) -> Evidence:
    truth, image = sample.truth(), sample.image()
    if image.shape[:2] != truth.size:
        raise DatasetError(
            f"The image {sample.name} is {image.shape[0]}x{image.shape[1]}, its labels are "
            f"{truth.size[0]}x{truth.size[1]}.",
            fix="Labels must have the size of their image; check that the two belong together.",
        )
    result = segmenter.processor.postprocess_with(*segmenter.logits(image), thresholds)
    return evidence(truth, result)


def _facts(
    segmenter: Segmenter, dataset: Dataset, samples: tuple[Sample, ...], thresholds: Thresholds
) -> dict[str, Any]:
    spec = segmenter.spec
    path = segmenter.engine.path
    return {
        "task": spec.task,
        "images": len(samples),
        "artifact": {
            "name": spec.name,
            "file": path.name if path else None,
            "sha256": file_sha256(path) if path else None,
            "precision": spec.precision,
            "backend": segmenter.engine.backend,
            "device": segmenter.engine.device,
        },
        "data": {
            "format": dataset.format,
            "origin": dataset.origin,
            "sha256_of_names": hashlib.sha256(
                "\n".join(sample.name for sample in samples).encode()
            ).hexdigest(),
        },
        "thresholds": asdict(thresholds),
        "evaluator": EVALUATOR,
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_log(path: Path, facts: dict[str, Any], count: int) -> tuple[list[Evidence], TextIO]:
    header = {"schema": SCHEMA, **facts}
    items: list[Evidence] = []
    try:
        if path.exists():
            lines = path.read_text("utf-8").splitlines()
            if not lines or json.loads(lines[0]) != header:
                raise UsageError(
                    f"{path} belongs to another evaluation (artifact, data, limit or thresholds).",
                    fix="Name another file for --resume, or delete this one.",
                )
            for line in lines[1 : count + 1]:
                try:
                    items.append(json.loads(line))
                except ValueError:
                    break  # the line that was being written when the last run was stopped
        log = path.open("w", encoding="utf-8")
        log.writelines(json.dumps(entry) + "\n" for entry in (header, *items))
        log.flush()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a file of --resume.") from error
    return items, log
