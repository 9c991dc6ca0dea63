"""Build profiles: named settings of a build, one file of `engines/` each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eomt_deploy.backends.building import BuildConfig, config_fields
from eomt_deploy.backends.registry import BACKENDS, load
from eomt_deploy.data_files import entries, read_toml
from eomt_deploy.errors import EomtDeployError, UsageError


@dataclass(frozen=True)
class BuildProfile:
    """How a model is built: a file of ``engines/``.

    Attributes:
        name: file name of its TOML, and what users type.
        target: backend that builds.
        precision: what the model must be exported in; None takes any.
        high: roles or modules that the export keeps in FP32.
        settings: fields of the backend's configuration, as users write them (``4GiB``).
    """

    name: str
    summary: str
    target: str
    precision: str | None = None
    high: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self, onnx: Path, output: Path, **changes: Any) -> BuildConfig:
        """The build of ``onnx`` to ``output`` by this profile.

        Args:
            changes: fields that differ from the profile.

        Raises:
            UsageError: the profile contradicts itself, or the output has another format.
        """
        if self.precision is not None:
            changes = {"expect_precision": self.precision, **changes}
        return make_config(self.target, onnx, output, {**self.settings, **changes})


def make_config(target: str, onnx: Path, output: Path, values: dict[str, Any]) -> BuildConfig:
    """The configuration of a build; values of other types than the field's are parsed.

    Raises:
        UsageError: a value does not apply to this backend, or cannot be used.
    """
    builder = BACKENDS[target].build
    assert builder is not None  # callers choose among those that build
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
    """The entries of ``engines/``, by name."""
    return {path.stem: _read(path) for path in entries("engines")}


def find_build_profile(name: str) -> BuildProfile:
    """The build profile called ``name``.

    Raises:
        UsageError: there is none; the message has them all.
    """
    known = build_profiles()
    if name not in known:
        raise UsageError(f"There is no build profile {name!r}.", fix=f"Known: {', '.join(known)}.")
    return known[name]


def _read(path: Path) -> BuildProfile:
    """A profile; keys that are not its own are settings of the backend."""
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
            f"{path} is not a build profile: {error}.",
            fix="Compare it with its neighbours in the folder.",
        ) from error
