"""Choice of one network in a file, and of the tensors that belong to it.

Many trainers store averaged weights (EMA, SWA) in addition to the last ones. Like the evaluation
code, we use the averaged weights by default; ``weights_key`` selects others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from eomt_deploy.checkpoints.prefixes import OWN, Copy, Layout, find_copies, printable
from eomt_deploy.checkpoints.tensor_files import FLOATS, WeightFiles
from eomt_deploy.errors import CheckpointError

AVERAGED = re.compile(r"(?<![a-z])(?:ema|swa|averaged|ema_?model|model_?ema)(?![a-z])", re.I)
"""Components of keys: `state_dict_ema`, `ema_model`, `model_ema`, `ema`, `modelEMA`, …"""
TRAINING_ONLY = re.compile(r"(?:^|\.)criterion\.")
"""The loss, which trainers of EoMT store together with the network."""
SCHEDULE = "attn_mask_probs"
"""Set by the training schedule, so an average of it is wrong."""
SHOWN = 3
SLACK = 1 << 20
"""Tensors can be larger than the file, because tied weights are stored once: limit is twice the
size of the file plus these bytes."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one network of a file, by keys without prefixes and wrappers.

    Attributes:
        files: the weight files.
        layout: naming scheme of the keys.
        names: names in the file, by key.
        label: place in the file; "." is its top level.
        stripped: removed prefixes and wrappers, as text; empty if none.
        alone: whether the file contains only this network.
        notes: warnings about the choice.
    """

    files: WeightFiles
    layout: Layout
    names: Mapping[str, str]
    label: str
    stripped: str
    alone: bool
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Type and shape of every tensor, without values."""
        return {key: self.files.shapes[name] for key, name in self.names.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read the tensors of these keys."""
        keys = list(keys)
        found = self.files.read(self.names[key] for key in keys)
        return {key: found[self.names[key]] for key in keys}

    def entry(self, name: str) -> object:
        """The entry ``name`` that the file stores next to these tensors, if any."""
        place = self.files.containers[next(iter(self.names.values()))]
        return self.files.entry(name, place)


def choose(
    files: WeightFiles, origin: Path, key: str | None = None, preferred: str | None = None
) -> Weights:
    """Choose the weights of one network.

    Args:
        files: weight files of the checkpoint.
        origin: path of the checkpoint, for messages.
        key: weights that the user requested: their place in the file, or a part of it.
        preferred: label to use if the file has it and ``key`` is None.

    Raises:
        CheckpointError: there is no EoMT, ``key`` matches none or several, the choice is ambiguous,
            or the tensors cannot be used.
    """
    copies = find_copies([*files.shapes, *files.unusable])
    if not copies:
        raise CheckpointError(
            f"{origin} does not contain an EoMT: it has neither the official keys "
            "(network.q.weight), nor those of Hugging Face (query.weight) or LightlyTrain "
            "(model.queries.weight).",
            why=f"Its first keys are {', '.join(map(printable, [*files.shapes][:SHOWN]))}.",
            fix="Pass the checkpoint of a trained EoMT, not of a backbone or another network.",
        )
    averaged = [copy for copy in copies if _is_averaged(copy, copies, files)]
    copy = _meant(copies, averaged, origin, key, preferred)
    names, notes = dict(copy.names), []
    others = [other for other in copies if other is not copy]
    if others:
        kind = "averaged (EMA) weights" if copy in averaged else "weights"
        notes.append(
            f"The file contains several copies of the network. The {kind} under {copy.label} are "
            f"used. To use others, pass --weights-key with one of: {_quoted(others)}."
        )
    elif copy in averaged:
        notes.append(f"The weights under {copy.label} are averaged weights (EMA or SWA).")
    if copy in averaged:
        notes += _completed(names, copy, [o for o in others if o not in averaged], files)
        notes += _never_updated(copy, files)
    if stripped := _stripped(copy, files):
        notes.append(f"The keys of the weights are read without {stripped}.")
    notes += _left_out(copy, copies, copy in averaged, files)
    _check(names, files, origin)
    return Weights(files, copy.layout, names, copy.label, stripped, not others, tuple(notes))


def _meant(
    copies: list[Copy], averaged: list[Copy], origin: Path, key: str | None, preferred: str | None
) -> Copy:
    labels = {copy.label: copy for copy in copies}
    if key is not None:
        fitting = [labels[key]] if key in labels else [c for c in copies if _fits(key, c.label)]
        if len(fitting) == 1:
            return fitting[0]
        raise CheckpointError(
            f"{origin} does not contain a network under {key!r}."
            if not fitting
            else f"{key!r} matches several networks in {origin}: {_quoted(fitting)}.",
            why=f"It contains networks under: {_quoted(copies)}."
            + (" A dot is the top level of the file." if "." in labels else ""),
            fix=f"Pass one of these, e.g. --weights-key {next(iter(labels))}.",
        )
    if len(copies) == 1:
        return copies[0]
    if preferred in labels:
        return labels[preferred]
    if len(averaged) == 1:
        return averaged[0]
    raise CheckpointError(
        f"{origin} contains {len(copies)} copies of the network: {_quoted(copies)}.",
        why="None of them is marked as averaged (EMA)."
        if not averaged
        else f"Several are marked as averaged (EMA): {_quoted(averaged)}.",
        fix=f"Choose one of them, e.g. --weights-key {copies[0].label}.",
    )


def _fits(key: str, label: str) -> bool:
    """Whether ``key`` consists of consecutive components of ``label``."""
    return f".{key}." in f".{label}."


def _is_averaged(copy: Copy, copies: list[Copy], files: WeightFiles) -> bool:
    """Whether a copy contains weights that were averaged during training."""
    places = {other.label.partition(".")[0] for other in copies}
    # MMEngine and Lightning store averaged weights as state_dict, and the last ones elsewhere.
    swapped = "ema_state_dict.steps" in files.shapes or "current_model_state" in places
    if swapped and "state_dict" in places:
        return copy.label.partition(".")[0] == "state_dict"
    return _counter(copy, files) is not None or any(
        AVERAGED.search(part) for part in copy.lead.split(".")
    )


def _counter(copy: Copy, files: WeightFiles) -> str | None:
    """Name of the update counter of PyTorch's AveragedModel, next to its ``module``, if any."""
    parts = copy.lead.split(".")
    beside = (
        ".".join((*parts[:i], "n_averaged")) for i, part in enumerate(parts) if part == "module"
    )
    return next((name for name in beside if name in files.shapes), None)


def _never_updated(copy: Copy, files: WeightFiles) -> list[str]:
    counter = _counter(copy, files) or "averaging_state.n_averaged"  # Lightning's
    if counter in files.shapes and not bool(files.read([counter])[counter].any()):
        return [
            f"{printable(counter)} is 0: the averaged weights were never updated, so they are the "
            "initial weights of the training."
        ]
    return []


def _completed(
    names: dict[str, str], copy: Copy, others: list[Copy], files: WeightFiles
) -> list[str]:
    """Add tensors that averaged weights lack (frozen layers, buffers) from the other copy."""
    sources = [other for other in others if other.layout == copy.layout]
    if len(sources) != 1:
        return []
    source, notes = sources[0], []
    lacking = [k for k in source.names if k not in names and not TRAINING_ONLY.search(k)]
    for key in lacking:
        names[key] = source.names[key]
    if lacking:
        notes.append(
            f"{len(lacking)} tensors are missing in the averaged weights and are taken from "
            f"{source.label}: {_listed(lacking)}."
        )
    both = [each.names.get(SCHEDULE, "") for each in (copy, source)]
    if all(name in files.shapes for name in both):
        first, second = files.read(both).values()
        if first.shape != second.shape or bool((first != second).any()):
            names[SCHEDULE] = source.names[SCHEDULE]
            notes.append(
                f"{SCHEDULE} is taken from {source.label}, because it must not be averaged."
            )
    return notes


def _stripped(copy: Copy, files: WeightFiles) -> str:
    """Prefixes and wrappers of the keys that the layout does not have, as text."""
    name = next(iter(copy.names.values()))
    depth = len(".".join(files.containers[name])) + 1 if files.containers[name] else 0
    prefix = copy.lead[depth:].split(".")[:-1]
    if OWN[copy.layout] in prefix:  # its last occurrence belongs to the layout
        del prefix[len(prefix) - 1 - prefix[::-1].index(OWN[copy.layout])]
    texts = []
    if prefix:
        texts.append(f"the prefix {printable('.'.join(prefix))}")
    if copy.wrappers:
        texts.append(f"{_listed(copy.wrappers)} inside them")
    return " and ".join(texts)


def _left_out(copy: Copy, copies: list[Copy], averaged: bool, files: WeightFiles) -> list[str]:
    """Warnings about tensors that are not used, although a user may expect it."""
    used = {name for each in copies for name in each.names.values()}
    rest = [name for name, t in files.shapes.items() if name not in used and t.numel() > 1]
    rest = [name for name in rest if not TRAINING_ONLY.search(name)]
    notes = []
    lost = [n for n in rest if any(AVERAGED.search(part) for part in n.split("."))]
    if lost and not averaged:
        notes.append(
            f"{len(lost)} tensors seem to be averaged (EMA) weights, but do not have the names of "
            f"an EoMT, so they are not used: {_listed(lost)}."
        )
    place = files.containers[next(iter(copy.names.values()))]
    beside = [n for n in rest if files.containers[n] == place and n not in lost]
    if beside:
        notes.append(
            f"{len(beside)} tensors do not belong to the network and are left out: "
            f"{_listed(beside)}."
        )
    return notes


def _check(names: Mapping[str, str], files: WeightFiles, origin: Path) -> None:
    """Reject tensors that are not plain weights, or that are much larger than the file.

    Raises:
        CheckpointError: there are some; the first one is named.
    """
    wrong = {name: files.unusable[name] for name in names.values() if name in files.unusable}
    for name in names.values():
        if name in files.shapes and files.shapes[name].dtype not in FLOATS:
            shape = files.shapes[name]
            if shape.ndim > 1:  # counters and flags have at most one dimension
                wrong[name] = f"its type is {str(shape.dtype).removeprefix('torch.')}"
    if wrong:
        name, why = next(iter(wrong.items()))
        raise CheckpointError(
            f"{len(wrong)} tensors of {origin} are not plain floating-point weights: "
            f"{printable(name)} ({why})" + (", …." if len(wrong) > 1 else "."),
            fix="Pass the checkpoint as it was trained, in float32, float16 or bfloat16.",
        )
    size = sum(files.shapes[name].nbytes for name in names.values())
    if size > 2 * files.size + SLACK:
        largest = max(names.values(), key=lambda name: files.shapes[name].nbytes)
        raise CheckpointError(
            f"The tensors of {origin} claim {size:,} bytes, but the file has {files.size:,}: "
            f"{printable(largest)} is {list(files.shapes[largest].shape)}.",
            why="They repeat stored values, which no trainer does: the file is damaged.",
            fix="Download or copy it again.",
        )


def _quoted(copies: Iterable[Copy]) -> str:
    """All labels. The dot of the top level is quoted, because it would be overlooked."""
    return ", ".join('"."' if copy.label == "." else copy.label for copy in copies)


def _listed(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
