"""The settings of a run in its output folder: a later run continues it only with the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eomt_deploy.backends.registry import choose_backend
from eomt_deploy.batch import plan, rows, shards
from eomt_deploy.batch.config import BatchConfig
from eomt_deploy.batch.places import Place
from eomt_deploy.batch.plan import Plan
from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import ModelFileError, OutputError, UsageError
from eomt_deploy.external_data import side_files
from eomt_deploy.files import GENERATOR, STAGING_PREFIX, fcntl, unwritable
from eomt_deploy.model_file import parse_spec, read_onnx_metadata, read_xml
from eomt_deploy.package_metadata import read_metadata
from eomt_deploy.sidecar import read_sidecar, sha256, sidecar_path
from eomt_deploy.spec import ModelSpec, Thresholds

NAME = "batch.json"
LOCK = ".eomt-deploy-batch.lock"
SCHEMA = 1
FOLDERS = (plan.FOLDER, shards.FOLDER, rows.LABELS, rows.OVERLAYS)


def read_spec(path: Path) -> ModelSpec:
    """The description of a model file, without opening it with a backend.

    Raises:
        ModelFileError: the file is missing, damaged, or not written by eomt-deploy.
    """
    if not path.is_file():
        raise ModelFileError(f"There is no model at {path}.", fix="Check the path.")
    choose_backend(path, None)  # refuses an unknown suffix
    suffix = path.suffix.lower()
    if suffix in (".engine", ".pte"):
        return read_sidecar(path).spec
    if suffix == ".xml":
        return read_xml(path).spec
    metadata = read_metadata(path) if suffix == ".pt2" else read_onnx_metadata(path)
    return parse_spec(metadata, path)


def model_sha256(path: Path) -> str:
    """SHA-256 of a model file and the files that belong to it."""
    files = [path]
    if path.suffix.lower() == ".onnx":
        files += side_files(path)
    others = (path.with_suffix(".bin"), sidecar_path(path))
    files += [other for other in others if path.suffix.lower() != ".onnx" and other.is_file()]
    return sha256(*files)


def settings_of(config: BatchConfig, thresholds: Thresholds, model: str) -> dict[str, Any]:
    """The settings that the results depend on, except for the list of images.

    Args:
        thresholds: all thresholds.
        model: SHA-256 of the model.
    """
    return {
        "model": f"{config.model.name} (SHA-256 {model})",
        "backend": choose_backend(config.model, config.backend, config.device),
        "device": config.device,
        "arithmetic": config.arithmetic,
        "thresholds": asdict(thresholds),
        "max_pixels": check_max_pixels(config.max_pixels),
        "labels": config.labels,
        "overlays": config.overlays,
        "shard_size": config.shard_size,
    }


def identity(settings: Mapping[str, Any]) -> str:
    """A short hash of settings, which each shard contains."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Output:
    """The output folder of a run.

    Attributes:
        place: the folder.
        settings: all settings, with the list of images.
        plan: numbers and hash of the images.
        finished: sum of the shards that earlier runs finished.
    """

    place: Place
    settings: Mapping[str, Any]
    plan: Plan
    finished: shards.Totals

    @property
    def run(self) -> str:
        return identity(self.settings)


def prepare_output(
    place: Place, images: Any, settings: Mapping[str, Any], *, overwrite: bool
) -> Output:
    """Continue the run in a folder, or start one.

    Args:
        images: iterable of all paths; it is iterated once or twice.
        settings: see :func:`settings_of`.
        overwrite: also replace files that eomt-deploy did not write.

    Raises:
        UsageError: the folder contains a run with other settings or other images.
        OutputError: the folder contains foreign files, or it cannot be written.
    """
    shard_size = settings["shard_size"]
    before = _read(place, overwrite)
    if before is None and not overwrite:
        names = [f"{folder}/{name}" for folder in FOLDERS for name in place.names(folder)]
        if names:
            raise _foreign(place, names)
    known = before.get("settings") if before else None
    if known is not None:
        made = plan.make_plan(images, shard_size, None)
        found = with_images(settings, made)
        _check_same(place, known, found)
    else:
        # First without settings: after a kill, the plan may be incomplete, but it is ours.
        place.write(NAME, _content({}))
        made = plan.make_plan(images, shard_size, place)
        found = with_images(settings, made)
        place.write(NAME, _content({"settings": found}))
    names = [f"{shards.FOLDER}/{name}" for name in place.names(shards.FOLDER)]
    names = [name for name in names if STAGING_PREFIX not in name]  # of a killed process
    finished = shards.finished(place, identity(found), names)
    foreign = sorted(set(names) - {shards.name_of(shard) for shard in finished.shards})
    if foreign and not overwrite:
        raise _foreign(place, foreign)
    for name in foreign:  # readers take every file in this folder
        place.remove(name)
    return Output(place, found, made, finished)


def with_images(settings: Mapping[str, Any], made: Plan) -> dict[str, Any]:
    """Settings with the list of images."""
    return {**settings, "images": f"{made.images} (SHA-256 of the list {made.sha256})"}


def _content(data: Mapping[str, Any]) -> bytes:
    return json.dumps({"generator": GENERATOR, "schema": SCHEMA, **data}, indent=1).encode() + b"\n"


def _read(place: Place, overwrite: bool) -> dict[str, Any] | None:
    """The content of batch.json; None if there is none, or if a foreign one may be replaced."""
    content = place.read(NAME)
    if content is None:
        return None
    with suppress(ValueError, RecursionError):
        data = json.loads(content)
        if (
            isinstance(data, dict)
            and str(data.get("generator", "")).startswith("eomt-deploy ")
            and data.get("schema") == SCHEMA
            and isinstance(data.get("settings", {}), dict)
        ):
            return data
    if overwrite:
        return None
    raise _foreign(place, [NAME])


def _check_same(place: Place, known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    changed = [k for k in {**known, **found} if known.get(k) != found.get(k)]
    if changed:
        differences = (f"{k} was {known.get(k)}, now it is {found.get(k)}" for k in changed)
        raise UsageError(
            f"{place.root} contains the results of a run with other settings: "
            f"{'; '.join(differences)}.",
            why="All shards of a folder must have the same settings and the same images.",
            fix="Repeat the earlier command to continue it, choose another folder, or remove this "
            "one.",
        )


def _foreign(place: Place, names: list[str]) -> OutputError:
    listed = ", ".join(place.path(name) for name in names[:3])
    return OutputError(
        f"{place.root} contains {len(names)} files that this run did not write: "
        f"{listed}{', …' if len(names) > 3 else ''}.",
        why="Results are written to the same names or subfolders, and your files are not replaced.",
        fix="Choose another output folder, or pass --overwrite to replace the files whose names "
        "are needed.",
    )


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Let only one run write into a local folder at a time.

    The lock ends with the process, also after kill -9.

    Raises:
        UsageError: another process writes into the folder.
    """
    if place.remote or fcntl is None:
        yield
        return
    path = Path(place.path(LOCK))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"Another process writes into {place.root}.",
                fix="Wait until it ends, or choose another folder.",
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        yield
        path.unlink(missing_ok=True)
