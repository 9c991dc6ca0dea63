"""Data that contributors add to: `export/`, `engines/` and `benchmarks/` at the top of the
repository, one TOML file for each entry. The wheel contains them as `eomt_deploy/_data/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from eomt_deploy.errors import EomtDeployError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """Path of ``export``, ``engines``, ``benchmarks`` or ``examples``: packed, or in the clone."""
    packed = PACKAGE / "_data" / name
    return packed if packed.is_dir() else PACKAGE.parent / name


def entries(name: str) -> list[Path]:
    """The TOML files of a data folder, sorted by name."""
    return sorted(folder(name).glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        EomtDeployError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data: dict[str, Any] = tomllib.load(file)
            return data
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise EomtDeployError(
            f"{path} cannot be read: {error}.",
            fix="Correct this file, or install eomt-deploy again if you did not change it.",
        ) from error


def make_entry(kind: Any, path: Path, data: dict[str, Any], *, named: bool = True) -> Any:
    """Make a dataclass from the values of a TOML file; lists become tuples.

    Args:
        kind: the dataclass.
        path: the file, for messages.
        data: the values.
        named: set the field ``name`` to the file name without its suffix.

    Raises:
        EomtDeployError: the values do not match the fields.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if named:
        values["name"] = path.stem
    try:
        return kind(**values)
    except TypeError as error:
        raise EomtDeployError(
            f"{path} cannot be read as {kind.__name__}: {error}.",
            fix="Compare it with the other files in the folder.",
        ) from error
