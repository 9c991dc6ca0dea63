"""Evaluation of a model on labelled data, with a running score; it can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from eomt_deploy.errors import DatasetError, OutputError, UsageError
from eomt_deploy.evaluation.scorers import EVALUATOR, Evidence, Scorer, Scores, scorer_for
from eomt_deploy.evaluation.truth import Dataset, Sample, Truth
from eomt_deploy.files import write_atomically
from eomt_deploy.model_file import EXTERNAL_SUFFIX
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import RgbImage
from eomt_deploy.spec import Thresholds

SCHEMA = 1
RUNNING_SCORE_SHARE = 20
"""The running score is updated after this many times its own computing time."""

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class EvalReport:
    """Scores of one model on one data set.

    Attributes:
        scores: overall scores and scores per class, in percent.
        per_image: name and main score of each image, in the order of the data.
        facts: model file, data, number of images, thresholds and evaluator.
    """

    scores: Scores
    per_image: tuple[tuple[str, float | None], ...]
    facts: dict[str, Any]

    def worst(self, count: int) -> list[int]:
        """Indices of the images with the lowest scores, from the lowest."""
        scored = [(s, i) for i, (_, s) in enumerate(self.per_image) if s is not None]
        return [index for _, index in sorted(scored)[:count]]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON, starting with the overall scores."""
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
        segmenter: model to evaluate.
        dataset: labelled data for the task of the model.
        limit: maximum number of images; None takes all.
        thresholds: post-processing thresholds; None takes the model's defaults.
        resume: JSON Lines file for the evidence of each image. If it exists, it must belong to
            the same evaluation, which is then continued.
        progress: called with the number of finished images and the running score as text.

    Raises:
        DatasetError: a label or image is not valid, or they do not match; the file is named.
        UsageError: ``limit`` is below 1, or ``resume`` belongs to another evaluation.
        OutputError: ``resume`` cannot be written.
        VerificationError: the model returns NaN or infinite logits.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"--limit must be at least 1, got {limit}.",
            fix="Pass 1 or more, or leave --limit out for all images.",
        )
    samples = dataset.samples[:limit]
    scorer = scorer_for(segmenter.spec)
    used = thresholds or segmenter.spec.thresholds
    facts = _facts(segmenter, dataset, samples, used)
    items: list[Evidence] = []
    log: TextIO | None = None
    if resume is not None:
        items, log = _open_log(resume, facts, samples, scorer)
    shown, next_score = "", 0.0
    progress(len(items), shown)
    try:
        for sample in samples[len(items) :]:
            image, truth = read_sample(sample)
            logits = segmenter.logits(image)
            result = segmenter.processor.postprocess_with(*logits, used, sample.name)
            item = scorer.evidence(truth, result)
            items.append(item)
            if log is not None:
                log.write(json.dumps({"image": sample.name, **item}) + "\n")
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
    scores = scorer.scores(items)
    if scores.value is None:
        raise DatasetError(
            f"Nothing in {dataset.origin} could be scored.",
            why="No image has a label that counts. Some data sets do not publish the labels of "
            "their test split.",
            fix="Evaluate on a split with labels, e.g. val.",
        )
    per_image = ((s.name, scorer.scores([i]).value) for s, i in zip(samples, items, strict=True))
    return EvalReport(scores, tuple(per_image), facts)


def read_sample(sample: Sample) -> tuple[RgbImage, Truth]:
    """Image and labels of a sample.

    Raises:
        DatasetError: one of them is not valid, or they have different sizes.
    """
    truth, image = sample.truth(), sample.image()
    if image.shape[:2] != truth.size:
        raise DatasetError(
            f"The image {sample.name} is {image.shape[0]}x{image.shape[1]}, its labels are "
            f"{truth.size[0]}x{truth.size[1]}.",
            why="Labels must have the size of their image.",
            fix="Check that the image and the labels belong together.",
        )
    return image, truth


def _facts(
    segmenter: Segmenter, dataset: Dataset, samples: tuple[Sample, ...], thresholds: Thresholds
) -> dict[str, Any]:
    spec = segmenter.spec
    path = segmenter.engine.path
    return {
        "task": spec.task,
        "images": len(samples),
        "model": {
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
            "fingerprint": dataset.fingerprint,
            "first": samples[0].name,
            "last": samples[-1].name,
        },
        "thresholds": asdict(thresholds),
        "evaluator": EVALUATOR,
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a model file, including its external file with weights."""
    digest = hashlib.sha256()
    for part in (path, path.with_name(path.name + EXTERNAL_SUFFIX)):
        if part.is_file():
            with part.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()


def _open_log(
    path: Path, facts: dict[str, Any], samples: Sequence[Sample], scorer: Scorer
) -> tuple[list[Evidence], TextIO]:
    """Read the evidence of an earlier run, and open the file to append to it."""
    header = json.dumps({"schema": SCHEMA, **facts})
    items: list[Evidence] = []
    try:
        content = path.read_text("utf-8") if path.exists() else ""
        # If the last run was interrupted, its last line may be incomplete.
        lines = content[: content.rfind("\n") + 1].splitlines()
        if content and (not lines or lines[0] != header):
            raise UsageError(
                f"{path} cannot be resumed.",
                why="It belongs to another evaluation (another model, data, limit or thresholds), "
                "or --resume did not write it.",
                fix="Choose another file for --resume, or delete this one.",
            )
        for number, (line, sample) in enumerate(zip(lines[1:], samples, strict=False), 2):
            items.append(_read_item(line, sample.name, scorer, f"line {number} of {path}"))
        kept = [header, *lines[1 : len(items) + 1]]
        # Replace the file atomically, then append, so that no interruption loses progress.
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        return items, path.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}.",
            fix="Choose a file in a writable folder for --resume.",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} was not written by --resume.", fix="Choose another file for --resume."
        ) from error


def _read_item(line: str, name: str, scorer: Scorer, place: str) -> Evidence:
    try:
        item: Evidence = json.loads(line)
        if item.pop("image") != name:
            raise ValueError(f"another image is expected: {name}")
        scorer.scores([item])
    except Exception as error:  # the line may contain anything
        raise UsageError(
            f"The {place} is not valid ({error}).", fix="Delete the file and start again."
        ) from error
    return item
