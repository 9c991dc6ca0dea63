"""``eomt-deploy.json`` in each version folder: what the Python code in the server needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.errors import ModelFileError
from eomt_deploy.fields import (
    FILE_NAME,
    MAX_NAME,
    Items,
    Nullable,
    One,
    Record,
    check_fields,
    integer,
    one_of,
    optional,
    read_object,
    text,
)
from eomt_deploy.files import GENERATOR
from eomt_deploy.spec import MAX_BATCH, ModelSpec

Role = Literal["segment", "bls", "preprocess", "postprocess", "network", "ensemble"]
SETTINGS_NAME = "eomt-deploy.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """One version of one model of a repository.

    Attributes:
        role: what the model does.
        spec: description of the network.
        files: size in bytes of all other files in the version folder, by name.
        model: file that ``segment`` opens; None for other roles.
        network: name of the model with the network, which ``bls`` calls; None for other roles.
        batch: minimum and maximum number of inputs of one call of the network.
        backend: see :class:`~eomt_deploy.triton.options.TritonConfig`.
        device: as ``backend``.
        threads: as ``backend``.
        max_pixels: as ``backend``.
    """

    role: Role
    spec: ModelSpec
    files: Mapping[str, int] = field(default_factory=dict)
    model: str | None = None
    network: str | None = None
    batch: tuple[int, int] = (1, 1)
    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    max_pixels: int | None = None
    generator: str = field(default=GENERATOR)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """All settings as one JSON object, which begins with the generator, as all our files."""
        data = asdict(self) | {"spec": json.loads(self.spec.to_json())}
        return json.dumps({"generator": data.pop("generator"), **data}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Read the settings of a version folder.

        Raises:
            ModelFileError: they are missing, or a field is missing or invalid.
        """
        path = folder / SETTINGS_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.", fix=FIX) from error
        data = read_object(content, str(path), FIX)
        check_fields(SETTINGS, data, str(path), FIX)
        made = {
            "spec": ModelSpec.from_data(data["spec"]),
            "batch": tuple(data["batch"]),
        }
        return cls(**data | made)


def _are_sizes(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and type(size) is int for name, size in value.items()
    )


FIX = "Write the repository again: eomt-deploy triton"
SETTINGS = Record(
    Settings,
    {
        "role": one_of(*get_args(Role)),
        "spec": One("an object", lambda value: isinstance(value, dict)),  # has its own rules
        "files": One("sizes in bytes by file name", _are_sizes),
        "model": Nullable(FILE_NAME),
        "network": optional(text(MAX_NAME)),
        "batch": Items(integer(1, MAX_BATCH), 2, 2),
        "backend": optional(text(MAX_NAME)),
        "device": optional(one_of("cpu", "cuda")),
        "threads": optional(integer(1, 1024)),
        "max_pixels": optional(integer(1, 2**63 - 1)),
        "generator": text(MAX_NAME),
        "schema_version": One(
            str(SCHEMA_VERSION), lambda value: type(value) is int and value == SCHEMA_VERSION
        ),
    },
)
"""Rules for the fields of the settings."""
