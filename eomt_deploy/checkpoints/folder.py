"""The weight files of a Hugging Face model folder."""

from __future__ import annotations

import reprlib
from pathlib import Path

from eomt_deploy.checkpoints.prefixes import printable
from eomt_deploy.errors import CheckpointError
from eomt_deploy.files import read_json

NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
"""Suffix of the file that lists the shard of each tensor."""
SHOWN = 3
MAX_FILE_NAME = 200
"""Maximum number of characters; file systems allow 255 bytes."""


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, shards in order.

    Raises:
        CheckpointError: the folder has none, or its index is invalid or lists missing files.
    """
    for name in NAMES:
        index = folder / f"{name}{INDEX_SUFFIX}"
        if index.is_file():
            return _shards(folder, index)
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(
        f"{folder} does not contain {' or '.join(NAMES)}, or an index of shards.",
        fix="Pass a Hugging Face model folder, or the weight file itself.",
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        places = read_json(index)["weight_map"]
        values = places.values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index} cannot be read: {error}.", fix="Download the folder again."
        ) from error
    wrong = [value for value in values if not _is_file_name(value)]
    if wrong or not values:
        found = f"it lists {printable(reprlib.repr(wrong[0]))}" if wrong else "it does not list any"
        raise CheckpointError(
            f"{index} is not an index of weight files: {found}.",
            why="An index lists files of its own folder.",
            fix="Download the folder again.",
        )
    names = sorted(set(values))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weight files that its index lists: "
            + ", ".join(map(printable, missing[:SHOWN]))
            + (", …." if len(missing) > SHOWN else "."),
            fix="Download the folder again.",
        )
    return [folder / name for name in names]


def _is_file_name(value: object) -> bool:
    """Whether a value is a plain file name, so that it cannot be a path on any system."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and len(value) <= MAX_FILE_NAME
        and not any(c in value for c in "/\\:")
        and value not in ("", ".", "..")
    )
