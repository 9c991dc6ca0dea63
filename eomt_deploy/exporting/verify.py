"""The tolerances of an export, which is compared with its checkpoint on real images."""

from __future__ import annotations

from eomt_deploy.backends.verification import Verification
from eomt_deploy.errors import VerificationError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.units import counted


def check(result: Verification, precision: str) -> None:
    """Check the comparison of an export with its checkpoint against the limits of ``precision``.

    Raises:
        VerificationError: logits are NaN or infinite, or an error or agreement exceeds its limit.
    """
    problems = result.problems(PRECISIONS[precision])
    if not problems:
        return
    if result.not_finite:
        why = "A tensor exceeds the FP16 range." if precision != "fp32" else ""
        fix = (
            "Leave out --no-islands, so that such tensors stay in FP32, or use --precision bf16."
            if precision != "fp32"
            else ""
        )
    else:
        why = (
            f"On {counted(result.images, 'image')}, the maximum error of class logits is "
            f"{result.class_max:.3g}, of mask logits {result.mask_max:.3g}."
        )
        fix = (
            "This should not happen: report it with the architecture of the checkpoint."
            if precision == "fp32"
            else "Calibrate on images like those that the model will see, keep more layers in FP32 "
            "(--high), or use a higher precision."
        )
    raise VerificationError(
        f"The exported model differs from the checkpoint: {'; '.join(problems)}. "
        "Nothing was written.",
        why=why,
        fix=fix,
    )
