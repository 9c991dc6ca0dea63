"""``<engine>.json``: what a compiled engine, which carries no metadata, says of itself.

The plan stays a plain plan, so that other tools open it. What is needed to refuse a wrong machine
*before* the run-time is called stands here.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eomt_deploy.errors import ArtifactError
from eomt_deploy.files import through_links, write_atomically
from eomt_deploy.spec import ModelSpec

Target = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = get_args(Target)
SCHEMA_VERSION = 1
AND_LATER = "+"
"""Ends a compute capability that stands for all later ones, too: "8.0+"."""


@dataclass(frozen=True)
class Sidecar:
    """Facts of one engine file.

    Attributes:
        spec: the model's description, as in the ONNX file.
        target: ``tensorrt`` or ``tensorrt-rtx``.
        library_version: of the library that built it.
        precision: what it computes in: held against the engine's own inspector by TensorRT, and
            against the types of the parsed network by TensorRT-RTX, which compiles its kernels
            when an engine is loaded. ``settings`` says which, and counts the layers.
        batch: (least, optimal, largest) batch.
        compute_capabilities: GPUs it was built for, as "8.9", or "8.0+" for 8.0 and later.
        gpu: name of the GPU it was built on; None when built without one.
        driver: NVIDIA driver at build time; None without one.
        version_compatible: runs with other versions of the library.
        hardware_compatibility: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        stripped: the weights are not inside; refit from the ONNX file is needed.
        plan_bytes: size of the plan file.
        plan_sha256: of the plan file.
        onnx: file name of the ONNX model.
        onnx_sha256: of the ONNX file (of both files, where weights stand beside it).
        settings: what else was asked of the builder (workspace, optimisation level …).
    """

    spec: ModelSpec
    target: str
    library_version: str
    precision: str
    batch: tuple[int, int, int]
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    driver: str | None
    version_compatible: bool
    hardware_compatibility: str
    stripped: bool
    plan_bytes: int
    plan_sha256: str
    onnx: str
    onnx_sha256: str
    settings: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a GPU of this (major, minor) is among those that it was built for."""
        return any(
            compute_capability >= _capability(entry)
            if entry.endswith(AND_LATER)
            else compute_capability == _capability(entry)
            for entry in self.compute_capabilities
        )

    def to_json(self) -> str:
        """All facts as one JSON object."""
        data = asdict(self)
        data["spec"] = json.loads(self.spec.to_json())
        return json.dumps(data, indent=1)  # plain ASCII: file names may be no text

    @classmethod
    def from_json(cls, text: str) -> Sidecar:
        """Read what :meth:`to_json` wrote.

        Raises:
            ArtifactError: not JSON, a field missing or wrong, or another schema.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ArtifactError(
                    f"The engine's description has schema {version}, this eomt-deploy reads "
                    f"schema {SCHEMA_VERSION}.",
                    fix="Build the engine again, or install the eomt-deploy that built it.",
                )
            spec = ModelSpec.from_json(json.dumps(data.pop("spec")))
            least, optimal, largest = map(int, data.pop("batch"))
            capabilities = tuple(data.pop("compute_capabilities"))
            for entry in capabilities:
                _capability(entry)
            if not 1 <= least <= optimal <= largest:
                raise ValueError(f"batch is {least}, {optimal}, {largest}")
            if spec.batch is not None and (least, largest) != (spec.batch, spec.batch):
                raise ValueError(f"batch is {least} to {largest}, and the model's is {spec.batch}")
            if not re.match(r"[0-9]+\.[0-9]+", str(data["library_version"])):
                raise ValueError(f"library_version is {data['library_version']!r}")
            sidecar = cls(
                spec=spec,
                batch=(least, optimal, largest),
                compute_capabilities=capabilities,
                **data,
            )
            _check_types(sidecar)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"The engine's description cannot be read ({error!r}).",
                fix="Build the engine again with this version of eomt-deploy.",
            ) from error
        return sidecar


def known_target(sidecar: Sidecar) -> Target:
    """The library that runs the engine.

    Raises:
        ArtifactError: one that we do not know.
    """
    if sidecar.target not in TARGETS:
        raise ArtifactError(
            f"The engine was built for {sidecar.target!r}, which this eomt-deploy does not know.",
            fix=f"Known: {', '.join(TARGETS)}. A newer eomt-deploy may open it.",
        )
    return sidecar.target


def sidecar_path(engine: Path) -> Path:
    """``m.engine`` -> ``m.engine.json``; for a link, beside the file that it points to."""
    path = engine.with_name(engine.name + ".json")
    real = through_links(engine)
    return path if real == engine or path.exists() else real.with_name(real.name + ".json")


def read_sidecar(engine: Path) -> Sidecar:
    """What stands beside an engine file.

    Raises:
        ArtifactError: there is none, it cannot be read, or it is no engine description.
    """
    path = sidecar_path(engine)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{engine} has no description: {path.name} is missing beside it.",
            why="A plan says neither which classes it knows nor which machine it was built for.",
            fix="Copy the .json file along with its engine, or build it: "
            "eomt-deploy build model.onnx -o model.engine",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    try:
        return Sidecar.from_json(text)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error


def write_sidecar(engine: Path, sidecar: Sidecar) -> Path:
    """Write ``<engine>.json``, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = sidecar_path(engine)
    write_atomically(path, sidecar.to_json().encode() + b"\n")
    return path


def check_plan(engine: Path, sidecar: Sidecar, *, whole: bool = False) -> None:
    """The engine file must be the one that its description describes.

    Args:
        whole: also compare the SHA-256, which reads the whole file.

    Raises:
        ArtifactError: it is missing, cut or another file.
    """
    try:
        size = engine.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{engine} cannot be read: {error.strerror}.") from error
    fix = f"Copy it and {sidecar_path(engine).name} again, both, or build it again."
    if size != sidecar.plan_bytes:
        kind = "cut off" if size < sidecar.plan_bytes else "another file"
        raise ArtifactError(
            f"{engine} has {size} bytes, by its description it should have "
            f"{sidecar.plan_bytes}: it is {kind}.",
            fix=fix,
        )
    if whole and (found := sha256(engine)) != sidecar.plan_sha256:
        raise ArtifactError(
            f"{engine} is not the engine that {sidecar_path(engine).name} describes "
            f"(SHA-256 {found[:12]}…, not {sidecar.plan_sha256[:12]}…).",
            fix=fix,
        )


def sha256(*files: Path) -> str:
    """SHA-256 over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _capability(entry: str) -> tuple[int, int]:
    """``"8.9"`` or ``"8.0+"`` -> (8, 9) or (8, 0)."""
    major, minor = entry.removesuffix(AND_LATER).split(".")
    return int(major), int(minor)


def _check_types(sidecar: Sidecar) -> None:
    """JSON keeps no types of ours: a number where a word must stand fails here, not later."""
    words = (
        "target",
        "library_version",
        "precision",
        "hardware_compatibility",
        "plan_sha256",
        "onnx",
        "onnx_sha256",
    )
    kinds: dict[str, type | tuple[type, ...]] = dict.fromkeys(words, str)
    kinds |= {"gpu": (str, type(None)), "driver": (str, type(None)), "plan_bytes": int}
    kinds |= {"version_compatible": bool, "stripped": bool, "settings": dict}
    for name, kind in kinds.items():
        if not isinstance(value := getattr(sidecar, name), kind):
            raise TypeError(f"{name} is {value!r}")
