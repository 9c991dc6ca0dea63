"""Build profiles: named build settings, one file in `engines/` per profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.building import BuildConfig, config_fields
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.data_files import entries, read_toml
from eomt_deploy.errors import EomtDeployError, UsageError


@dataclass(frozen=True)
class BuildProfile:
    """Settings of a build, read from a file in ``engines/``.

    Attributes:
        name: name of the profile: the stem of its TOML file.
        summary: one line that describes it.
        target: backend that builds the model.
        precision: precision that the model must be exported in; None accepts any.
        high: roles or modules that the export keeps in FP32.
        settings: fields of the backend's build configuration, already parsed.
    """

    name: str
    summary: str
    target: str
    precision: str | None = None
    high: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self, onnx: Path, output: Path, **changes: Any) -> BuildConfig:
        """Make the configuration for building ``onnx`` to ``output`` with this profile.

        Args:
            changes: fields that override the profile.

        Raises:
            UsageError: the settings conflict, or the suffix of the output is wrong.
        """
        if self.precision is not None:
            changes = {"expect_precision": self.precision, **changes}
        return make_config(self.target, onnx, output, {**self.settings, **changes})


def make_config(target: str, onnx: Path, output: Path, values: dict[str, Any]) -> BuildConfig:
    """Make the build configuration of a backend.

    Raises:
        UsageError: a value does not apply to this backend, or is not valid.
    """
    builder = BACKENDS[target].build
    assert builder is not None  # callers only pass backends with a builder
    kind: type[BuildConfig] = load(builder.config)
    known = config_fields(kind)
    for name in values:
        if name not in known:
            raise UsageError(
                f"--{name.replace('_', '-')} does not apply to {BACKENDS[target].title}.",
                fix="Leave it out.",
            )
    if "target" in known:
        values = {**values, "target": target}
    return kind(onnx, output, **values)


@cache
def build_profiles() -> dict[str, BuildProfile]:
    """The profiles in ``engines/``, by name."""
    return {path.stem: _read(path) for path in entries("engines")}


def find_build_profile(name: str) -> BuildProfile:
    """Find a build profile by name.

    Raises:
        UsageError: there is no profile with this name; the message lists all profiles.
    """
    known = build_profiles()
    if name not in known:
        raise UsageError(f"There is no build profile {name!r}.", fix=f"Known: {', '.join(known)}.")
    return known[name]


def _read(path: Path) -> BuildProfile:
    """Read a profile; keys other than ``own`` are settings of the backend."""
    data = read_toml(path)
    own = ("summary", "target", "precision", "high")
    try:
        target = str(data["target"])
        builder = BACKENDS[target].build
        assert builder is not None
        options = load(builder.config).options()
        values = {key: options[key].parse(data[key]) for key in data if key not in own}
        high = tuple(data.get("high", ()))
        return BuildProfile(
            path.stem, str(data["summary"]), target, data.get("precision"), high, values
        )
    except (AssertionError, KeyError, TypeError) as error:
        raise EomtDeployError(
            f"{path} is not a valid build profile: {error}.",
            fix="Compare it with the other files in its folder.",
        ) from error
