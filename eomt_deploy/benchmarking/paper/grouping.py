"""Groups of rows that fit into memory together, from conservative estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.benchmarking.paper.suite_file import SuiteRow
from eomt_deploy.devices import memory_bytes

USABLE = 0.8
"""Share of the free memory that may be used."""
PATCH = 16
WIDTHS = {"tiny": 64, "small": 384, "base": 768, "large": 1024, "giant": 1536}
LIVE_TOKENS, LIVE_MAPS = 24, 6
"""Activations that are in memory at once, as multiples of the width: per token, and per cell of
the map at a quarter of the image size. Each query adds one map."""
EXPORTED = 2
"""Copies of the weights of an exported network: the file in memory, and the runtime's own."""
GRAPHS = ("torch-graph", "torch-max-autotune", "aotinductor-graph")
SHARED_WEIGHTS = ("torch-eager", "torch-compile", "torch-max-autotune", "torch-graph")


@dataclass(frozen=True)
class Need:
    """Memory in bytes: weights, which stay allocated, and activations of the running row."""

    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.activations


def need(
    row: SuiteRow, params: int, precision: str, runtimes: Sequence[str], batch: int = 1
) -> Need:
    """Estimate the memory that a row takes in all runtimes together."""
    size = 2 if precision in ("fp16", "bf16") else 4
    exported = sum(name not in SHARED_WEIGHTS for name in runtimes)
    # Weights are created in FP32 before they are converted.
    weights = params * (4 + size * EXPORTED * exported)
    cells = row.size[0] // 4 * (row.size[1] // 4)
    tokens = row.size[0] // PATCH * (row.size[1] // PATCH) + row.queries
    width = WIDTHS.get(row.backbone.split("-")[0], max(WIDTHS.values()))
    values = tokens * width * LIVE_TOKENS + cells * (LIVE_MAPS * width + row.queries)
    if row.step == 4:
        values += tokens * tokens * 4  # the attention mask and its copies
    activations = values * size * batch * row.inputs
    # A CUDA graph keeps the memory of its capture.
    weights += activations * sum(name in GRAPHS for name in runtimes)
    return Need(weights, activations)


def free_bytes(device: str) -> float:
    """Usable free memory of a device, in bytes."""
    if device == "cuda":
        import torch

        return USABLE * torch.cuda.mem_get_info()[0]
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return USABLE * int(line.split()[1]) * 1024
    except OSError:
        pass
    return USABLE * (memory_bytes() or 0)


def pack(
    names: Sequence[str], needs: Mapping[str, Need], bases: Mapping[str, str], free: float
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Pack rows, in their order, into groups that fit into memory.

    The base of every row is also in its group. A row that fits alone but not together with its
    base gets a group without the base.

    Args:
        names: names of the rows.
        needs: memory of each row.
        bases: base row of each row.
        free: free memory in bytes.

    Returns:
        the groups, and the rows that do not fit at all.
    """

    def total(group: Sequence[str]) -> float:
        return sum(needs[n].weights for n in group) + max(needs[n].activations for n in group)

    too_large = [name for name in names if needs[name].total > free]
    groups: list[list[str]] = []
    for name in names:
        if name in too_large or any(name in group for group in groups):
            continue
        base = bases[name]
        own = [base, name] if base != name and base in names and base not in too_large else [name]
        if total(own) > free:
            own = [name]
        together = list(dict.fromkeys([*(groups[-1] if groups else []), *own]))
        if groups and total(together) <= free:
            groups[-1] = together
        else:
            groups.append(own)
    order = {name: index for index, name in enumerate(names)}
    return [tuple(sorted(group, key=order.__getitem__)) for group in groups], too_large
