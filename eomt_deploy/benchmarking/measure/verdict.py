"""Verdict on a measurement: VALID or INVALID, with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eomt_deploy.benchmarking.machine.state import GpuState

Kind = Literal[
    "clock", "few rounds", "unstable", "throttled", "other load", "copy-bound", "launch-bound"
]

INVALIDATING: frozenset[Kind] = frozenset(
    ("clock", "few rounds", "unstable", "throttled", "other load")
)
"""Reasons that make a number invalid: a repeated measurement could differ. The other two, copies
and launches, limit this runtime on this machine; such a time is valid, but it is not the time of
the network on the device."""

MIN_ROUNDS = 6
"""Minimum number of samples for a useful interval."""
UNSTABLE_CV = 0.10
THROTTLED_SHARE = 0.10
OTHER_LOAD = 0.10
BOUND_SHARE = 0.5
LAUNCH_SHARE = 0.9


@dataclass(frozen=True)
class Reason:
    kind: Kind
    text: str


@dataclass(frozen=True)
class Verdict:
    """Verdict on one row."""

    reasons: tuple[Reason, ...] = ()

    @property
    def valid(self) -> bool:
        return not any(reason.kind in INVALIDATING for reason in self.reasons)

    def __str__(self) -> str:
        word = "VALID" if self.valid else "INVALID"
        kinds = dict.fromkeys(reason.kind for reason in self.reasons)
        return ": ".join(filter(None, (word, ", ".join(kinds))))

    def to_dict(self) -> dict[str, Any]:
        return {
            "valid": self.valid,
            "reasons": [{"kind": reason.kind, "text": reason.text} for reason in self.reasons],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verdict:
        return cls(tuple(Reason(r["kind"], r["text"]) for r in data["reasons"]))


@dataclass(frozen=True)
class Evidence:
    """Input of the verdict on one row.

    Attributes:
        cv: coefficient of variation of its samples.
        rounds: number of its samples; None skips this check.
        steady: whether the times became steady.
        others: share of the machine that other programs used, 0 to 1; None if unknown.
        gpu: state of the GPU during the measurement; None for a row on the CPU.
        host_share: time until the call returned over the time until the work was done; None if
            they are always equal (CPU, or a call that waits for copies).
        copy_share: share of the time outside the network; None if it is not measured.
        clock: reason why its samples are not valid times, see
            :func:`eomt_deploy.benchmarking.measure.statistics.clock_problem`; None if they are.
    """

    cv: float
    rounds: int | None = None
    steady: bool = True
    others: float | None = None
    gpu: GpuState | None = None
    host_share: float | None = None
    copy_share: float | None = None
    clock: str | None = None


def judge(evidence: Evidence, *, unstable_cv: float = UNSTABLE_CV) -> Verdict:
    """The verdict, with all reasons that apply."""
    reasons: list[Reason] = []
    if evidence.clock is not None:
        reasons.append(Reason("clock", evidence.clock))
    if evidence.rounds is not None and evidence.rounds < MIN_ROUNDS:
        text = f"at least {MIN_ROUNDS} rounds are needed, got {evidence.rounds}"
        reasons.append(Reason("few rounds", text))
    if evidence.clock is None and not evidence.cv <= unstable_cv:  # NaN is unstable, too
        text = f"the times vary by {evidence.cv:.0%}, the limit is {unstable_cv:.0%}"
        reasons.append(Reason("unstable", text))
    if not evidence.steady:
        text = "the times were not steady when the warm-up reached its maximum"
        reasons.append(Reason("unstable", text))
    for name, share in evidence.gpu.throttled if evidence.gpu else ():
        if share > THROTTLED_SHARE:
            text = f"the GPU was throttled ({name}) in {share:.0%} of the samples"
            reasons.append(Reason("throttled", text))
    if evidence.others is not None and evidence.others > OTHER_LOAD:
        text = f"other programs used {evidence.others:.0%} of the machine"
        reasons.append(Reason("other load", text))
    if evidence.copy_share is not None and evidence.copy_share > BOUND_SHARE:
        text = f"copies and the host take {evidence.copy_share:.0%} of the time"
        reasons.append(Reason("copy-bound", text))
    if evidence.host_share is not None and evidence.host_share > LAUNCH_SHARE:
        text = (
            f"the host takes {evidence.host_share:.0%} of the time to launch the work, so the GPU "
            "waits for it"
        )
        reasons.append(Reason("launch-bound", text))
    return Verdict(tuple(reasons))
