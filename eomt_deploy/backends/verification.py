"""Comparison of an engine with a reference on real images: logits, classes, masks and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.engine import Engine, Outputs, run_in_parts
from eomt_deploy.precision import Precision
from eomt_deploy.processing import Processor
from eomt_deploy.units import logit_error

Logits = npt.NDArray[np.floating[Any]]
MAX_TOGETHER = 4
"""Maximum number of inputs that are compared as one batch."""


@dataclass(frozen=True)
class Verification:
    """Differences between an engine and its reference.

    Attributes:
        images: number of images compared.
        inputs: number of network inputs compared (each window is one).
        class_max, class_mean: maximum and mean absolute error of the class logits.
        mask_max, mask_mean: maximum and mean absolute error of the mask logits.
        relative_max: maximum error of class or mask logits, divided by the largest of these logits.
        class_agreement: fraction of queries with the same best class.
        mask_agreement: fraction of mask pixels with the same sign.
        label_agreement: fraction of mask pixels with the same best class, see :func:`labels`. A
            pixel counts as much as the score of its class, so that the fraction neither depends on
            thresholds nor on pixels where the model sees nothing.
        not_finite: the first logits that were NaN or infinite; empty if all were finite.
    """

    images: int
    inputs: int
    class_max: float
    class_mean: float
    mask_max: float
    mask_mean: float
    relative_max: float
    class_agreement: float
    mask_agreement: float
    label_agreement: float = 1.0
    not_finite: str = ""

    def to_dict(self) -> dict[str, float | str | None]:
        """The numbers for JSON, which has no NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}

    def problems(self, limits: Precision) -> list[str]:
        """What exceeds the limits; empty if nothing does."""
        if self.not_finite:
            return [f"the {self.not_finite} are NaN or infinite"]
        found = []
        # Written so that NaN fails: a comparison with NaN is never true.
        if not self.relative_max <= limits.max_relative_error:
            found.append(logit_error(self.relative_max, limits.max_relative_error))
        for name in ("class_agreement", "mask_agreement", "label_agreement"):
            if not getattr(self, name) >= limits.min_agreement:
                found.append(
                    f"{name.replace('_', ' ')} {getattr(self, name):.4%} "
                    f"(minimum {limits.min_agreement:.2%})"
                )
        return found


def labels(class_logits: Logits, mask_logits: Logits) -> tuple[npt.NDArray[np.int64], Logits]:
    """The best class of each mask pixel, without thresholds, for any task.

    The score of a class is the sum over queries of class probability times mask probability, as in
    semantic segmentation (Mask2Former, section 3.4).

    Args:
        class_logits: [B, Q, C+1].
        mask_logits: [B, Q, h, w].

    Returns:
        best class, int64 [B, h * w], and its score.
    """
    shifted = np.exp(class_logits - class_logits.max(-1, keepdims=True))
    classes = (shifted / shifted.sum(-1, keepdims=True))[..., :-1].astype(np.float32)
    with np.errstate(over="ignore"):
        masks = 1 / (1 + np.exp(-mask_logits.astype(np.float32)))
    scores = classes.transpose(0, 2, 1) @ masks.reshape(*masks.shape[:2], -1)
    return scores.argmax(axis=1), scores.max(axis=1)


class _Errors:
    """Accumulated errors of the logits, and shares of equal decisions."""

    def __init__(self) -> None:
        self.largest, self.worst, self.total, self.count = (np.zeros(2) for _ in range(4))
        self.equal, self.compared = np.zeros(3), np.zeros(3)

    def add(self, found: Outputs, wanted: Outputs) -> None:
        for kind, (have, want) in enumerate(zip(found, wanted, strict=True)):
            error = np.abs(have.astype(np.float32) - want)
            # np.maximum keeps NaN, max() may not.
            self.largest[kind] = np.maximum(self.largest[kind], np.abs(want).max())
            self.worst[kind] = np.maximum(self.worst[kind], error.max())
            self.total[kind] += error.sum(dtype=np.float64)
            self.count[kind] += error.size
        best, scores = labels(*wanted)
        for kind, (equal, weights) in enumerate((
            (found[0].argmax(-1) == wanted[0].argmax(-1), None),
            ((found[1] > 0) == (wanted[1] > 0), None),
            (labels(*found)[0] == best, np.minimum(scores, 1)),
        )):  # fmt: skip
            self.equal[kind] += equal.sum() if weights is None else weights[equal].sum()
            self.compared[kind] += equal.size if weights is None else weights.sum()

    def result(self, images: int, inputs: int) -> Verification:
        mean = self.total / np.maximum(self.count, 1)
        # Without anything to compare, e.g. if no mask has a score, everything is equal.
        compared = np.where(self.compared > 0, self.compared, 1)
        shares = np.where(self.compared > 0, np.minimum(self.equal / compared, 1), 1)
        return Verification(
            images=images,
            inputs=inputs,
            class_max=float(self.worst[0]),
            class_mean=float(mean[0]),
            mask_max=float(self.worst[1]),
            mask_mean=float(mean[1]),
            relative_max=float((self.worst / np.maximum(self.largest, 1e-12)).max()),
            class_agreement=float(shares[0]),
            mask_agreement=float(shares[1]),
            label_agreement=float(shares[2]),
        )


def compare(
    engine: Engine,
    reference: Engine,
    images: Sequence[Path],
    progress: Callable[[str], None] = lambda _: None,
    *,
    batches: bool = False,
) -> Verification:
    """Run an engine and its reference on the same images.

    Args:
        engine: the engine.
        reference: engine with the right results, of the same input size.
        images: images; at least one.
        progress: called with a progress message for each image.
        batches: also run the inputs of several images as one batch, if the batch is dynamic.

    Returns:
        the differences; after the first logits that are not finite, the rest is not compared.
    """
    processor = Processor(engine.spec)
    errors = _Errors()
    inputs = 0
    kept: list[tuple[npt.NDArray[np.uint8], Outputs]] = []
    for index, path in enumerate(images):
        progress(f"comparing {path.name} ({index + 1} of {len(images)})")
        batch, _ = processor.preprocess(path)
        inputs += len(batch)
        wanted = run_in_parts(reference, batch)
        found = run_in_parts(engine, batch)
        for logits, whose in ((found, ""), (wanted, " of the reference")):
            if kinds := _not_finite(logits):
                return _broken(f"{kinds}{whose} on {path.name}", index + 1, inputs)
        errors.add(found, wanted)
        if batches and engine.spec.batch is None and len(kept) < MAX_TOGETHER:
            kept.append((batch[:1], (wanted[0][:1], wanted[1][:1])))
    if len(kept) > 1:
        progress(f"comparing a batch of {len(kept)}")
        together = np.concatenate([batch for batch, _ in kept])
        found = engine.run(together)
        if kinds := _not_finite(found):
            return _broken(f"{kinds} of a batch of {len(kept)}", len(images), inputs)
        for number, (_, wanted) in enumerate(kept):
            errors.add((found[0][number : number + 1], found[1][number : number + 1]), wanted)
    return errors.result(len(images), inputs)


def _not_finite(found: Outputs) -> str:
    names = [
        name for name, array in zip(("class", "mask"), found, strict=True)
        if not np.isfinite(array).all()
    ]  # fmt: skip
    return f"{' and '.join(names)} logits" if names else ""


def _broken(where: str, images: int, inputs: int) -> Verification:
    nan = float("nan")
    return Verification(images, inputs, nan, nan, nan, nan, nan, nan, nan, nan, where)
