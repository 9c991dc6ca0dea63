"""The data that people add to: `export/`, `engines/` and `benchmarks/` at the top of the
repository, one TOML file for each entry. They travel in the wheel as `eomt_deploy/_data/`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from eomt_deploy.errors import EomtDeployError

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """``export``, ``engines`` or ``benchmarks``, in the wheel or in the repository."""
    packed = PACKAGE / "_data" / name
    return packed if packed.is_dir() else PACKAGE.parent / name


def entries(name: str) -> list[Path]:
    """The TOML files of a folder, by name."""
    return sorted(folder(name).glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        EomtDeployError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise EomtDeployError(f"{path} cannot be read: {error}.") from error


def make_entry(kind: Any, path: Path, data: dict[str, Any], *, named: bool = True) -> Any:
    """A dataclass from the values of a TOML file; lists become tuples.

    Args:
        kind: the dataclass.
        named: its field ``name`` gets the name of the file.

    Raises:
        EomtDeployError: the values do not fit.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if named:
        values["name"] = path.stem
    try:
        return kind(**values)
    except TypeError as error:
        raise EomtDeployError(
            f"{path} is not a {kind.__name__}: {error}.",
            fix="Compare it with its neighbours in the folder.",
        ) from error
