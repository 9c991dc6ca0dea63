"""``<engine>.json``: the description of a compiled engine, which cannot contain metadata itself.

The engine file stays an unmodified plan of TensorRT or program of ExecuTorch, so that other tools
can open it. Its description contains everything needed to detect a wrong machine *before* the
library is called.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.certificate import CERTIFICATE, Certificate
from eomt_deploy.errors import ModelFileError
from eomt_deploy.fields import (
    FILE_NAME,
    MAX_LENGTH,
    MAX_NAME,
    SHA256,
    Items,
    Nullable,
    One,
    Record,
    Words,
    check_fields,
    flag,
    integer,
    matching,
    one_of,
    optional,
    read_object,
    shown,
    text,
)
from eomt_deploy.files import through_links, write_atomically
from eomt_deploy.model_file import EXTERNAL_SUFFIX
from eomt_deploy.precision import AUTOCAST, PRECISIONS
from eomt_deploy.spec import MAX_BATCH, ModelSpec

Target = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = get_args(Target)
SCHEMA_VERSION = 1
AND_LATER = "+"
"""Suffix of a compute capability that includes all later ones: "8.0+"."""


@dataclass(frozen=True)
class Sidecar:
    """Facts of one engine file.

    Attributes:
        spec: the model's description, as in the ONNX file.
        target: library that runs it: ``tensorrt``, ``tensorrt-rtx`` or ``executorch``.
        library_version: version of the library that built it.
        precision: precision of its computation. For TensorRT it was checked with the engine
            inspector. TensorRT-RTX compiles its kernels when it loads an engine, so there the types
            of the parsed network were checked. ``settings`` contains the layer counts.
        batch: (minimum, optimal, maximum) batch size.
        compute_capabilities: GPUs it was built for, e.g. "8.9", or "8.0+" for 8.0 and later.
        gpu: name of the GPU it was built on; None if it was built without a GPU.
        driver: version of the NVIDIA driver at build time; None without a driver.
        version_compatible: whether it runs with other versions of the library.
        hardware_compatibility: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        stripped: whether the weights are left out; they are refitted from the ONNX file.
        plan_bytes: size of the engine file.
        plan_sha256: SHA-256 of the engine file.
        onnx: file name of the ONNX model.
        onnx_sha256: SHA-256 of the ONNX file, or of both files if it has a side file.
        settings: other settings of the builder (workspace, optimisation level, …).
        certificate: comparison of the engine with the ONNX model; None if there was none.
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
    certificate: Certificate | None = None
    schema_version: int = SCHEMA_VERSION

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether the engine was built for GPUs of this compute capability (major, minor)."""
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
        return json.dumps(data, indent=1)  # plain ASCII, since file names may not be valid text

    @classmethod
    def from_json(cls, content: str | bytes) -> Sidecar:
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelFileError: not JSON, a missing or invalid field, or another schema.
        """
        data = read_object(content, WHAT, FIX)
        version = data.get("schema_version")
        if version != SCHEMA_VERSION and type(version) is int:
            raise ModelFileError(
                f"{WHAT} has schema {shown(version)}, this eomt-deploy reads schema "
                f"{SCHEMA_VERSION}.",
                fix="Rebuild the engine, or install the version of eomt-deploy that built it.",
            )
        check_fields(SIDECAR, data, WHAT, FIX)
        spec = ModelSpec.from_data(data["spec"])
        minimum, optimal, largest = data["batch"]
        problem = ""
        if not minimum <= optimal <= largest:
            problem = f"`batch` must be in ascending order, got {minimum}, {optimal}, {largest}"
        elif spec.batch is not None and (minimum, largest) != (spec.batch, spec.batch):
            problem = f"`batch` must be {spec.batch} as in the model, got {minimum} to {largest}"
        if problem:
            raise ModelFileError(f"{WHAT} is invalid: {problem}.", fix=FIX)
        found = data.get("certificate")
        certificate = None if found is None else Certificate(**found)
        made = {"spec": spec, "batch": (minimum, optimal, largest), "certificate": certificate}
        return cls(**data | made | {"compute_capabilities": tuple(data["compute_capabilities"])})


def known_target(sidecar: Sidecar) -> Target:
    """The library that runs the engine.

    Raises:
        ModelFileError: the library is unknown.
    """
    if sidecar.target not in TARGETS:
        raise ModelFileError(
            f"The engine was built for {sidecar.target!r}, which this eomt-deploy does not know.",
            fix=f"Update eomt-deploy. This version knows {', '.join(TARGETS)}.",
        )
    return sidecar.target


def sidecar_path(engine: Path) -> Path:
    """Path of the description: ``m.engine`` -> ``m.engine.json``; for a link, beside its target."""
    path = engine.with_name(engine.name + ".json")
    real = through_links(engine)
    return path if real == engine or path.exists() else real.with_name(real.name + ".json")


def read_sidecar(engine: Path) -> Sidecar:
    """Read the description beside an engine file.

    Raises:
        ModelFileError: the description is missing, cannot be read, or is invalid.
    """
    path = sidecar_path(engine)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LENGTH + 1)  # from_json() refuses more than MAX_LENGTH
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{engine} has no description: {path.name} is missing.",
            why="The engine file itself contains neither its classes nor the machine that it was "
            "built for.",
            fix="Copy the .json file together with the engine, or build the engine: "
            f"eomt-deploy build model.onnx -o model{engine.suffix}",
        ) from error
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    try:
        return Sidecar.from_json(content)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error


def write_sidecar(engine: Path, sidecar: Sidecar) -> Path:
    """Write ``<engine>.json`` atomically and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    path = sidecar_path(engine)
    write_atomically(path, sidecar.to_json().encode() + b"\n")
    return path


def check_plan(engine: Path, sidecar: Sidecar, *, full: bool = False) -> None:
    """Check that an engine file matches its description.

    Args:
        engine: the engine file.
        sidecar: its description.
        full: also compare the SHA-256, which reads the complete file.

    Raises:
        ModelFileError: the engine is missing, cut off or another file.
    """
    try:
        size = engine.stat().st_size
    except OSError as error:
        raise ModelFileError(
            f"{engine} cannot be read: {error.strerror}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    fix = f"Copy the engine and {sidecar_path(engine).name} again, or rebuild the engine."
    if size != sidecar.plan_bytes:
        kind = "cut off" if size < sidecar.plan_bytes else "another file"
        raise ModelFileError(
            f"{engine} has {size:,} bytes, but {sidecar.plan_bytes:,} according to its "
            f"description: it is {kind}.",
            fix=fix,
        )
    if full and (found := sha256(engine)) != sidecar.plan_sha256:
        raise ModelFileError(
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


def onnx_sha256(onnx: Path) -> str:
    """SHA-256 of an ONNX model: of the .onnx file, or of both files if it has a side file."""
    side = onnx.with_name(onnx.name + EXTERNAL_SUFFIX)
    return sha256(onnx, *([side] if side.is_file() else []))


def _capability(entry: str) -> tuple[int, int]:
    """``"8.9"`` or ``"8.0+"`` -> (8, 9) or (8, 0)."""
    major, minor = entry.removesuffix(AND_LATER).split(".")
    return int(major), int(minor)


WHAT = "The engine's description"
FIX = "Rebuild the engine with this version of eomt-deploy."


_NAME = text(MAX_NAME)
_VERSION = matching("a version such as 10.13.0.35", r"[0-9]{1,9}\.[0-9]{1,9}[0-9A-Za-z.+_-]{0,99}")
_CAPABILITY = matching("a compute capability such as 8.9 or 8.0+", r"[0-9]{1,4}\.[0-9]{1,4}\+?")

SIDECAR = Record(
    Sidecar,
    {
        "spec": One("an object", lambda value: isinstance(value, dict)),  # has its own rules
        "target": _NAME,  # see known_target
        "library_version": _VERSION,
        "precision": one_of(*PRECISIONS, *AUTOCAST),
        "batch": Items(integer(1, MAX_BATCH), 3, 3),
        "compute_capabilities": Items(_CAPABILITY, 0, 1000),
        "gpu": optional(_NAME),
        "driver": optional(_NAME),
        "version_compatible": flag(),
        "hardware_compatibility": one_of("none", "ampere_plus", "same_compute_capability"),
        "stripped": flag(),
        "plan_bytes": integer(0, 2**63 - 1),
        "plan_sha256": SHA256,
        "onnx": FILE_NAME,
        "onnx_sha256": SHA256,
        "settings": Words(1000, 100_000),
        "certificate": Nullable(CERTIFICATE),
        "schema_version": One(
            str(SCHEMA_VERSION), lambda value: type(value) is int and value == SCHEMA_VERSION
        ),
    },
    optional=("certificate",),  # missing in older files
)
"""Rules for the fields of an engine's description."""
