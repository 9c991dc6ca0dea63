"""Verification of an exported file against its checkpoint, on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eomt_deploy.backends import Engine
from eomt_deploy.errors import VerificationError
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.processing import Processor


@dataclass(frozen=True)
class Verification:
    """Differences between the exported file and the checkpoint in PyTorch.

    Attributes:
        images: number of images compared.
        inputs: number of network inputs compared (each window is one).
        class_max, class_mean: maximum and mean absolute error of the class logits.
        mask_max, mask_mean: maximum and mean absolute error of the mask logits.
        relative_max: maximum error of class or mask logits, divided by the largest of these logits.
        class_agreement: fraction of queries with the same best class.
        mask_agreement: fraction of mask pixels with the same sign.
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

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def compare(
    engine: Engine,
    reference: EoMT,
    images: Sequence[Path],
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Run the exported file and its reference on the same images.

    Args:
        engine: the exported file.
        reference: the network before any fold.
        images: images; at least one.
        progress: called with a progress message for each image.

    Raises:
        VerificationError: logits of the exported file are NaN or infinite.
    """
    processor = Processor(engine.spec)
    errors: dict[str, list[npt.NDArray[np.float32]]] = {"class": [], "mask": []}
    largest = {"class": 0.0, "mask": 0.0}
    same_class, same_side = [], []
    inputs = 0
    for index, path in enumerate(images):
        progress(f"verifying on {path.name} ({index + 1} of {len(images)})")
        batch, _ = processor.preprocess(path)
        inputs += len(batch)
        with torch.inference_mode():
            wanted = [t.numpy() for t in reference(torch.from_numpy(batch))]
        found = engine.run(batch)
        for kind, have, want in zip(errors, found, wanted, strict=True):
            if not np.isfinite(have).all():
                raise VerificationError(
                    f"The exported model gives {kind} logits that are NaN or infinite on "
                    f"{path.name}. Nothing was written.",
                    why="A tensor exceeds the FP16 range."
                    if engine.spec.precision != "fp32"
                    else "",
                    fix="Leave out --no-islands, so that such tensors stay in FP32, or use "
                    "--precision bf16."
                    if engine.spec.precision != "fp32"
                    else "",
                )
            errors[kind].append(np.abs(have - want).ravel())
            largest[kind] = max(largest[kind], float(np.abs(want).max()))
        same_class.append(found[0].argmax(-1) == wanted[0].argmax(-1))
        same_side.append((found[1] > 0) == (wanted[1] > 0))
    joined = {kind: np.concatenate(parts) for kind, parts in errors.items()}
    return Verification(
        images=len(images),
        inputs=inputs,
        class_max=float(joined["class"].max()),
        class_mean=float(joined["class"].mean()),
        mask_max=float(joined["mask"].max()),
        mask_mean=float(joined["mask"].mean()),
        relative_max=max(float(joined[k].max()) / max(largest[k], 1e-12) for k in joined),
        class_agreement=float(np.mean(np.concatenate([s.ravel() for s in same_class]))),
        mask_agreement=float(np.mean(np.concatenate([s.ravel() for s in same_side]))),
    )


def check(result: Verification, precision: str) -> None:
    """Check a verification against the tolerances of ``precision``.

    Raises:
        VerificationError: an error or agreement is outside the tolerances.
    """
    limits = PRECISIONS[precision]
    problems = []
    # Written so that NaN fails: a comparison with NaN is never true.
    if not result.relative_max <= limits.max_relative_error:
        problems.append(
            f"relative error {result.relative_max:.2e} (maximum {limits.max_relative_error:.0e})"
        )
    for name in ("class_agreement", "mask_agreement"):
        if not getattr(result, name) >= limits.min_agreement:
            problems.append(
                f"{name.replace('_', ' ')} {getattr(result, name):.4%} "
                f"(minimum {limits.min_agreement:.2%})"
            )
    if problems:
        raise VerificationError(
            f"The exported model differs from the checkpoint: {'; '.join(problems)}. "
            "Nothing was written.",
            why=f"On {result.images} images, the maximum error of class logits is "
            f"{result.class_max:.3g}, of mask logits {result.mask_max:.3g}.",
            fix="This should not happen: report it with the architecture of the checkpoint."
            if precision == "fp32"
            else "Calibrate on images like those that the model will see, keep more layers in FP32 "
            "(--high), or use a higher precision.",
        )
