"""Run a model over labelled data: resumable, with a running score and the worst images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from eomt_deploy.artifact import EXTERNAL_SUFFIX
from eomt_deploy.errors import DatasetError, OutputError, UsageError
from eomt_deploy.evaluation.scorers import EVALUATOR, Evidence, Scorer, Scores, scorer_for
from eomt_deploy.evaluation.truth import Dataset, Sample, Truth
from eomt_deploy.files import write_atomically
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import RgbImage
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

    def worst(self, count: int) -> list[int]:
        """Positions of the images with the lowest scores, worst first."""
        scored = [(s, i) for i, (_, s) in enumerate(self.per_image) if s is not None]
        return [index for _, index in sorted(scored)[:count]]

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
        VerificationError: the model gives NaN or infinite logits.
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
            f"Nothing in {dataset.origin} could be scored: no image has a label that counts.",
            fix="Some data sets keep the labels of their test split to themselves; use val.",
        )
    per_image = ((s.name, scorer.scores([i]).value) for s, i in zip(samples, items, strict=True))
    return EvalReport(scores, tuple(per_image), facts)


def read_sample(sample: Sample) -> tuple[RgbImage, Truth]:
    """Image and labels of a sample.

    Raises:
        DatasetError: one is broken, or they have different sizes.
    """
    truth, image = sample.truth(), sample.image()
    if image.shape[:2] != truth.size:
        raise DatasetError(
            f"The image {sample.name} is {image.shape[0]}x{image.shape[1]}, its labels are "
            f"{truth.size[0]}x{truth.size[1]}.",
            fix="Labels must have the size of their image; check that the two belong together.",
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
            "fingerprint": dataset.fingerprint,
            "first": samples[0].name,
            "last": samples[-1].name,
        },
        "thresholds": asdict(thresholds),
        "evaluator": EVALUATOR,
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a model's bytes, those of its side file with weights included."""
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
    """What an earlier run left, and the file opened to go on behind it."""
    header = json.dumps({"schema": SCHEMA, **facts})
    items: list[Evidence] = []
    try:
        content = path.read_text("utf-8") if path.exists() else ""
        # The line that was being written when the last run was stopped has no end.
        lines = content[: content.rfind("\n") + 1].splitlines()
        if content and (not lines or lines[0] != header):
            raise UsageError(
                f"{path} belongs to another evaluation (model, data, limit or thresholds), or it "
                "was not written by --resume.",
                fix="Choose another file for --resume, or delete this one.",
            )
        for number, (line, sample) in enumerate(zip(lines[1:], samples, strict=False), 2):
            items.append(_read_item(line, sample.name, scorer, f"line {number} of {path}"))
        kept = [header, *lines[1 : len(items) + 1]]
        # Replaced as a whole, then appended to: no moment at which progress could be lost.
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        return items, path.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} was not written by --resume.", fix="Choose another file for --resume."
        ) from error


def _read_item(line: str, name: str, scorer: Scorer, place: str) -> Evidence:
    try:
        item: Evidence = json.loads(line)
        if item.pop("image") != name:
            raise ValueError("it is of another image")
        scorer.scores([item])
    except Exception as error:  # whatever stands there
        raise UsageError(
            f"The {place} is damaged ({error}).", fix="Delete the file and start again."
        ) from error
    return item
