"""The catalog of published checkpoints and class lists: the files of `export/`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from eomt_deploy import licences
from eomt_deploy.classes import make_classes
from eomt_deploy.data_files import entries, folder, make_entry, read_toml
from eomt_deploy.errors import EomtDeployError, UsageError
from eomt_deploy.spec import ClassInfo, Task


@dataclass(frozen=True)
class Published:
    """Numbers of the authors: the score of ``metric`` in percent, FPS on ``device``."""

    metric: str
    score: float
    source: str
    fps: float | None = None
    device: str = ""


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint.

    Attributes:
        name: name that users pass; the file name of the TOML without its suffix.
        size: (H, W) of the training images, in pixels.
        weights: ``hf://owner/name@revision``, ``https://…#sha256=…``, or a file beside the TOML.
        classes: name of a list in ``export/classes/``.
        base_weights: gated weights that ``weights`` are the difference to; users download them.
    """

    name: str
    task: Task
    size: tuple[int, int]
    dataset: str
    classes: str
    backbone: str
    queries: int
    parameters: int
    weights: str
    licence: str
    published: Published | None = None
    base_weights: str = ""
    note: str = ""

    @property
    def source(self) -> str:
        """Hub name, address or path for :func:`eomt_deploy.checkpoints.read_checkpoint`."""
        return self.weights if "://" in self.weights else str(folder("export") / self.weights)

    @property
    def licences(self) -> list[str]:
        """Licences of all weights that the model is made of, with those of ``base_weights``."""
        return licences.parts(self.licence, self.base_weights)

    def class_list(self) -> tuple[ClassInfo, ...]:
        return class_lists()[self.classes]


@cache
def checkpoints() -> dict[str, CatalogEntry]:
    """All entries of ``export/`` by name."""
    return {path.stem: _checkpoint(path) for path in entries("export")}


@cache
def class_lists() -> dict[str, tuple[ClassInfo, ...]]:
    """The class lists in ``export/classes/`` by name."""
    files = sorted((folder("export") / "classes").glob("*.toml"))
    return {f.stem: make_classes(read_toml(f).get("classes", []), str(f)) for f in files}


def find_checkpoint(name: str) -> CatalogEntry:
    """The entry called ``name``.

    Raises:
        UsageError: the name is unknown; the message suggests similar names.
    """
    known = checkpoints()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UsageError(
        f"{name!r} is not a file, a folder, an hf:// name or a name in the catalog.",
        fix=(f"Did you mean {', '.join(near)}? " if near else "")
        + "`eomt-deploy list` shows the catalog.",
    )


def match_weights(weights: str) -> CatalogEntry | None:
    """The entry with these weights, so that an hf:// name of any revision gets its classes."""
    name = _without_revision(weights)
    return next((e for e in checkpoints().values() if _without_revision(e.weights) == name), None)


def _without_revision(weights: str) -> str:
    return weights.partition("@")[0] if weights.startswith("hf://") else weights


def _checkpoint(path: Path) -> CatalogEntry:
    data = read_toml(path)
    if data.get("task") not in get_args(Task):
        raise EomtDeployError(
            f"{path}: `task` must be one of {', '.join(get_args(Task))}, got {data.get('task')!r}.",
            fix="Correct `task` in this file.",
        )
    if "published" in data:
        data["published"] = make_entry(Published, path, data["published"], named=False)
    entry: CatalogEntry = make_entry(CatalogEntry, path, data)
    return entry
