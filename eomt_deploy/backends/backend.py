"""What the registry says about one backend."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from eomt_deploy.backends.engine import Engine
from eomt_deploy.devices import package_version

NO_GPU = "the NVIDIA driver reports no GPU"


class OpenEngine(Protocol):
    """Constructor signature of every engine."""

    def __call__(
        self, path: Path, *, device: str | None, threads: int | None, **options: Any
    ) -> Engine: ...


class Problem(NamedTuple):
    """Why something does not work on this machine, and the command that fixes it, if any."""

    what: str
    fix: str = ""


@dataclass(frozen=True)
class Builder:
    """How a backend builds its own model files from an exported ONNX model.

    Attributes:
        suffix: suffix of the files.
        config: subclass of :class:`~eomt_deploy.backends.building.BuildConfig`; its module does
            not import the backend's library.
        run: function (config, progress) -> :class:`~eomt_deploy.backends.building.BuildReport`.
        check: function (config) that raises an error if the build cannot start; optional.
        problem: function () -> :class:`Problem` if this machine cannot build, otherwise a text
            with the version and the GPU; optional.
        file: class (path) that reads and writes the certificate of a file, see
            :class:`~eomt_deploy.backends.building.BuiltFile`; optional.
        folder: the output is a folder, and the file with the suffix is the ``index`` in it.
        fused_attention: whether it builds graphs with ONNX's operator ``Attention``.
    """

    suffix: str
    config: str
    run: str
    check: str = ""
    problem: str = ""
    file: str = ""
    folder: bool = False
    fused_attention: bool = True


@dataclass(frozen=True)
class Backend:
    """One backend. Code is given as ``module:name`` and imported on first use; a module that
    starts with a dot is relative to this folder.

    Attributes:
        title: display name.
        package: name of the Python package that must be importable.
        distributions: names of its distributions, whose versions appear in reports.
        extra: extra of eomt-deploy that installs it.
        suffixes: suffixes of the files that it opens.
        devices: devices that it runs on.
        precisions: precisions of the models that it runs.
        engine: its engine, see :class:`OpenEngine`; empty if its files run only elsewhere.
        inspect: function (path) -> :class:`~eomt_deploy.backends.inspection.Inspection`; empty if
            another backend describes its files.
        build: how it builds its own files; None if it only opens files that `export` wrote.
        problem: function (device) -> :class:`Problem` or None, for problems other than a missing
            package or GPU; optional.
        automatic: suffixes that it may be selected for automatically; None means all.
        modes: modes that it can be optimised for; empty if there is only one.
        arithmetics: what its engine can be told to compute the unquantised layers in.
        caches: whether its engine keeps what it compiles, unless it is opened with ``cache=False``.
    """

    title: str
    package: str
    distributions: tuple[str, ...]
    extra: str
    suffixes: tuple[str, ...]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    engine: str
    inspect: str = ""
    build: Builder | None = None
    problem: str = ""
    automatic: tuple[str, ...] | None = None
    modes: tuple[str, ...] = ()
    arithmetics: tuple[str, ...] = ()
    caches: bool = False

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def install(self) -> str:
        """Command that installs it."""
        return f"pip install 'eomt-deploy[{self.extra}]'"

    @property
    def version(self) -> str:
        """Installed version, or an empty string."""
        found = (package_version(name) for name in self.distributions)
        return next((version for version in found if version), "")

    @property
    def formats(self) -> str:
        """What it builds, for people."""
        assert self.build is not None
        return "sites" if self.build.folder else f"{self.build.suffix} files"

    def chosen_for(self, suffix: str) -> bool:
        """Whether it may be selected automatically for files with this suffix."""
        return suffix in (self.suffixes if self.automatic is None else self.automatic)

    def load(self) -> OpenEngine:
        """Import the engine's class, and with it the library of the backend."""
        engine: OpenEngine = load(self.engine)
        return engine


def load(target: str) -> Any:
    """Import the object that ``module:name`` refers to."""
    module, name = target.split(":")
    return getattr(import_module(module, __package__), name)
