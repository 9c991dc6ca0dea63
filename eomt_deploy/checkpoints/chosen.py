"""Which of the networks in a file is taken, and what of the file belongs to it.

Trainers keep an average of the weights (EMA, SWA) beside the weights themselves. Evaluation code
uses the average, and so do we; ``weights_key`` takes another one.
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
"""In a component of the keys: `state_dict_ema`, `ema_model`, `model_ema`, `ema`, `modelEMA`, …."""
TRAINING_ONLY = re.compile(r"(?:^|\.)criterion\.")
"""The loss, which every trainer of EoMT stores beside the network."""
SCHEDULE = "attn_mask_probs"
"""Set by the training schedule. An average of it lags behind and says nothing."""
SHOWN = 3
SLACK = 1 << 20
"""Bytes that tensors may take beyond twice the file: tied weights are stored once."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one network of a file, by keys without prefixes and wrappers.

    Attributes:
        names: names in the file, by these keys.
        label: where they are in the file, "." for its top.
        stripped: what the keys in the file have besides, empty where nothing.
        alone: whether the file holds no other network.
        notes: what the user should know of the choice.
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
        """The tensors of these keys."""
        keys = list(keys)
        found = self.files.read(self.names[key] for key in keys)
        return {key: found[self.names[key]] for key in keys}

    def entry(self, name: str) -> object:
        """What the file holds under ``name`` beside these tensors; None where nothing."""
        place = self.files.containers[next(iter(self.names.values()))]
        return self.files.entry(name, place)


def choose(
    files: WeightFiles, origin: Path, key: str | None = None, preferred: str | None = None
) -> Weights:
    """The weights of the one network that is meant.

    Args:
        files: all that the checkpoint holds.
        origin: names it in messages.
        key: what the user calls the wanted weights; the path to them or a part of it.
        preferred: label that is taken where there is one, and no ``key``.

    Raises:
        CheckpointError: no EoMT is there, none or several fit ``key``, it is not known which of
            several is meant, or its tensors cannot be used.
    """
    copies = find_copies([*files.shapes, *files.unusable])
    if not copies:
        raise CheckpointError(
            f"{origin} holds tensors, but no EoMT: neither the official keys (network.q.weight), "
            "nor Hugging Face's (query.weight), nor LightlyTrain's (model.queries.weight) are "
            "there.",
            why=f"Its keys look like {', '.join(map(printable, [*files.shapes][:SHOWN]))}.",
            fix="Pass the checkpoint of a trained EoMT, not of a backbone or another network.",
        )
    averaged = [copy for copy in copies if _is_averaged(copy, copies, files)]
    copy = _meant(copies, averaged, origin, key, preferred)
    names, notes = dict(copy.names), []
    others = [other for other in copies if other is not copy]
    if others:
        kind = "averaged (EMA) weights" if copy in averaged else "weights"
        notes.append(
            f"The file holds several copies of the network. The {kind} under {copy.label} are "
            f"used; --weights-key takes another one: {_quoted(others)}."
        )
    elif copy in averaged:
        notes.append(f"The weights are averaged ones (EMA or SWA), under {copy.label}.")
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
            f"{origin} holds no network under {key!r}."
            if not fitting
            else f"{key!r} fits several networks in {origin}: {_quoted(fitting)}.",
            why=f"It holds networks under: {_quoted(copies)}."
            + (" A dot is the top of the file." if "." in labels else ""),
            fix=f"Pass one of these, for example --weights-key {next(iter(labels))}.",
        )
    if len(copies) == 1:
        return copies[0]
    if preferred in labels:
        return labels[preferred]
    if len(averaged) == 1:
        return averaged[0]
    raise CheckpointError(
        f"{origin} holds {len(copies)} copies of the network: {_quoted(copies)}.",
        why="None of them is marked as the averaged one (EMA)."
        if not averaged
        else f"Several are marked as averaged ones: {_quoted(averaged)}.",
        fix=f"Choose the one to use, for example --weights-key {copies[0].label}.",
    )


def _fits(key: str, label: str) -> bool:
    """Whether ``key`` is a run of components of ``label``."""
    return f".{key}." in f".{label}."


def _is_averaged(copy: Copy, copies: list[Copy], files: WeightFiles) -> bool:
    """Whether a copy is an average of weights over the training steps."""
    places = {other.label.partition(".")[0] for other in copies}
    # MMEngine and Lightning save the average as state_dict, and the last weights elsewhere.
    swapped = "ema_state_dict.steps" in files.shapes or "current_model_state" in places
    if swapped and "state_dict" in places:
        return copy.label.partition(".")[0] == "state_dict"
    return _counter(copy, files) is not None or any(
        AVERAGED.search(part) for part in copy.lead.split(".")
    )


def _counter(copy: Copy, files: WeightFiles) -> str | None:
    """Where PyTorch's AveragedModel counts its updates, beside the ``module`` that it averages."""
    parts = copy.lead.split(".")
    beside = (
        ".".join((*parts[:i], "n_averaged")) for i, part in enumerate(parts) if part == "module"
    )
    return next((name for name in beside if name in files.shapes), None)


def _never_updated(copy: Copy, files: WeightFiles) -> list[str]:
    counter = _counter(copy, files) or "averaging_state.n_averaged"  # Lightning's
    if counter in files.shapes and not bool(files.read([counter])[counter].any()):
        return [
            f"{printable(counter)} is 0: the averaged weights were never updated, so they are "
            "those that training began with."
        ]
    return []


def _completed(
    names: dict[str, str], copy: Copy, others: list[Copy], files: WeightFiles
) -> list[str]:
    """Take from the weights themselves what their average lacks: frozen layers and buffers."""
    sources = [other for other in others if other.layout == copy.layout]
    if len(sources) != 1:
        return []
    source, notes = sources[0], []
    lacking = [k for k in source.names if k not in names and not TRAINING_ONLY.search(k)]
    for key in lacking:
        names[key] = source.names[key]
    if lacking:
        notes.append(
            f"{len(lacking)} tensors that the averaged weights lack are taken from "
            f"{source.label}: {_listed(lacking)}."
        )
    both = [each.names.get(SCHEDULE, "") for each in (copy, source)]
    if all(name in files.shapes for name in both):
        first, second = files.read(both).values()
        if first.shape != second.shape or bool((first != second).any()):
            names[SCHEDULE] = source.names[SCHEDULE]
            notes.append(
                f"{SCHEDULE} is taken from {source.label}: an average of a schedule lags behind it."
            )
    return notes


def _stripped(copy: Copy, files: WeightFiles) -> str:
    """What the keys have besides the layout's own, in words."""
    name = next(iter(copy.names.values()))
    depth = len(".".join(files.containers[name])) + 1 if files.containers[name] else 0
    prefix = copy.lead[depth:].split(".")[:-1]
    if OWN[copy.layout] in prefix:  # the last one: it belongs to the layout
        del prefix[len(prefix) - 1 - prefix[::-1].index(OWN[copy.layout])]
    texts = []
    if prefix:
        texts.append(f"the prefix {printable('.'.join(prefix))}")
    if copy.wrappers:
        texts.append(f"{_listed(copy.wrappers)} inside them")
    return " and ".join(texts)


def _left_out(copy: Copy, copies: list[Copy], averaged: bool, files: WeightFiles) -> list[str]:
    """Tensors that a user may take for a part of what is used."""
    used = {name for each in copies for name in each.names.values()}
    rest = [name for name, t in files.shapes.items() if name not in used and t.numel() > 1]
    rest = [name for name in rest if not TRAINING_ONLY.search(name)]
    notes = []
    lost = [n for n in rest if any(AVERAGED.search(part) for part in n.split("."))]
    if lost and not averaged:
        notes.append(
            f"{len(lost)} tensors look like averaged (EMA) weights, but their names are not those "
            f"of an EoMT, so they are not used: {_listed(lost)}."
        )
    place = files.containers[next(iter(copy.names.values()))]
    beside = [n for n in rest if files.containers[n] == place and n not in lost]
    if beside:
        notes.append(f"{len(beside)} tensors beside the network are left out: {_listed(beside)}.")
    return notes


def _check(names: Mapping[str, str], files: WeightFiles, origin: Path) -> None:
    """Refuse tensors that are not weights, and more of them than the file has bytes.

    Raises:
        CheckpointError: the first of them is named.
    """
    wrong = {name: files.unusable[name] for name in names.values() if name in files.unusable}
    for name in names.values():
        if name in files.shapes and files.shapes[name].dtype not in FLOATS:
            shape = files.shapes[name]
            if shape.ndim > 1:  # counters and switches have fewer
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
            f"The tensors of {origin} claim {size:,} bytes, the file has {files.size:,}: "
            f"{printable(largest)} is {list(files.shapes[largest].shape)}.",
            why="They repeat what is stored, which no trainer does: the file is damaged.",
            fix="Download or copy it again.",
        )


def _quoted(copies: Iterable[Copy]) -> str:
    """All labels; the dot that is the top of the file would be lost among the others."""
    return ", ".join('"."' if copy.label == "." else copy.label for copy in copies)


def _listed(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
