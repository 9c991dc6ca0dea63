"""VALID or INVALID, with the reasons: whether a number means what its label says. Pure."""

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
"""The number would be another one if it were measured again. What remains, copies and launches,
is a true time of this runtime on this machine, but says little of the network on its device."""

LEAST_ROUNDS = 6
"""Fewer samples have no interval worth the name."""
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
    """What to think of one row."""

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
    """What is known of one row.

    Attributes:
        cv: coefficient of variation of its samples.
        rounds: number of its samples; None where it does not matter.
        steady: the warm-up ended by itself.
        others: share of the machine that other programs used, 0 to 1; None where unknown.
        gpu: what the GPU did meanwhile; None for a row on the CPU.
        host_share: time until the call returned over the time until the work was done; None
            where they are the same by nature (CPU, or a call that waits for copies).
        copy_share: share of the time that is no network; None where it is not measured.
        clock: why its samples cannot be times, see
            :func:`eomt_deploy.benchmarking.measure.statistics.clock_problem`; None if they can.
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
    """Every reason that the evidence gives."""
    reasons: list[Reason] = []
    if evidence.clock is not None:
        reasons.append(Reason("clock", evidence.clock))
    if evidence.rounds is not None and evidence.rounds < LEAST_ROUNDS:
        text = f"{evidence.rounds} rounds were measured, {LEAST_ROUNDS} are needed"
        reasons.append(Reason("few rounds", text))
    if evidence.clock is None and not evidence.cv <= unstable_cv:  # nor if it is not a number
        text = f"the times vary by {evidence.cv:.0%}, {unstable_cv:.0%} is allowed"
        reasons.append(Reason("unstable", text))
    if not evidence.steady:
        text = "the times still changed when the warm-up was cut off"
        reasons.append(Reason("unstable", text))
    for name, share in evidence.gpu.throttled if evidence.gpu else ():
        if share > THROTTLED_SHARE:
            text = f"{name} held the clocks down in {share:.0%} of the looks"
            reasons.append(Reason("throttled", text))
    if evidence.others is not None and evidence.others > OTHER_LOAD:
        text = f"other programs used {evidence.others:.0%} of the machine"
        reasons.append(Reason("other load", text))
    if evidence.copy_share is not None and evidence.copy_share > BOUND_SHARE:
        text = f"copies and the host take {evidence.copy_share:.0%} of the time"
        reasons.append(Reason("copy-bound", text))
    if evidence.host_share is not None and evidence.host_share > LAUNCH_SHARE:
        text = (
            f"the host needs {evidence.host_share:.0%} of the time to launch the work: "
            "the GPU waits"
        )
        reasons.append(Reason("launch-bound", text))
    return Verdict(tuple(reasons))
