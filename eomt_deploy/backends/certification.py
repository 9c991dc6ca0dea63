"""The check at the end of a build: the new file against its ONNX model, on this machine.

Users report that TensorRT 10.3 and 10.4 compute vision transformers wrongly without any message
(NVIDIA/TensorRT issues 4419, 4723, 4742). So a file is published only if it computes what its ONNX
model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.backends.building import BuildConfig, BuiltFile
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.backends.verification import Verification, compare
from eomt_deploy.certificate import Certificate
from eomt_deploy.devices import cpu_name, current_gpu, package_version
from eomt_deploy.errors import (
    MissingDependencyError,
    ModelFileError,
    UsageError,
    VerificationError,
)
from eomt_deploy.image_search import search_images
from eomt_deploy.precision import Precision, computes_in, engine_limits
from eomt_deploy.processing import Processor
from eomt_deploy.sidecar import onnx_sha256
from eomt_deploy.sources import built_in_images, readable_images
from eomt_deploy.spec import ModelSpec

if TYPE_CHECKING:
    from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine

NEEDED = {"onnxruntime": "onnxruntime", "onnx_ir": "onnx-ir", "ml_dtypes": "ml_dtypes"}
"""Packages of the reference, by module."""


class Check:
    """The check of one build. It is created before the build, so that mistakes are reported early.

    Args:
        config: configuration of the build.
        possible: whether this machine can run the new file.

    Raises:
        ImageError: there are no images to check on.
        MissingDependencyError: the reference cannot run.

    Attributes:
        notes: warnings about images.
    """

    def __init__(self, config: BuildConfig, *, possible: bool = True) -> None:
        self._config = config
        self.notes: list[str] = []
        self._found = search_images([config.check_images] if config.check_images else
                                    built_in_images())  # fmt: skip
        self._readable: list[Path] | None = None
        if config.check and possible:
            check_reference()

    def images(self, spec: ModelSpec) -> list[Path]:
        """The readable images."""
        if self._readable is None:
            read = Processor(spec).preprocess
            self._readable, notes = readable_images(self._found.paths, "the check", read)
            self.notes += notes
            if self._found.note:
                self.notes.append(f"Images: {self._found.note}.")
        return self._readable

    def run(
        self, open_engine: Callable[[], Engine], progress: Callable[[str, float | None], None]
    ) -> Certificate | None:
        """Compare the new file with its ONNX model.

        Args:
            open_engine: opens the new file.
            progress: called with progress messages.

        Returns:
            the certificate; None with ``--no-check``.

        Raises:
            VerificationError: the results differ.
        """
        if not self._config.check:
            return None
        with open_engine() as engine, open_reference(self._config.onnx) as reference:
            images = self.images(engine.spec)
            result = compare(
                engine, reference, images, lambda text: progress(text, None), batches=True
            )
            limits = engine_limits(engine.spec.precision, engine.arithmetic)
            if problems := result.problems(limits):
                raise failure(self._config.onnx, engine, problems, nothing_written=True)
            return certificate(engine, result, limits)


def check_reference() -> None:
    """Check that the reference can run.

    Raises:
        MissingDependencyError: a package is missing.
    """
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"The check of a build needs {' and '.join(missing)}.",
            why="The new file is compared with its ONNX model, which ONNX Runtime computes.",
            fix="pip install 'eomt-deploy[cpu]', or build with --no-check.",
        )


def open_reference(onnx: Path) -> OnnxRuntimeEngine:
    """The ONNX model in FP32 on the CPU, without fused operators.

    Raises:
        ModelFileError: the model cannot be read.
        MissingDependencyError: a package is missing.
    """
    check_reference()
    from eomt_deploy.backends.emulation.engine import EmulatedEngine

    return EmulatedEngine(onnx, exact=True)


def source_model(path: Path, built: BuiltFile | None, against: Path | None) -> Path:
    """The ONNX model that a model file is compared with.

    Args:
        path: the model file.
        built: its origin, if it was built from an ONNX model.
        against: the ONNX model, if the user gave one.

    Raises:
        ModelFileError: it does not exist, or the file was built from another one.
        UsageError: the user must give it.
    """
    if path.suffix.lower() == ".onnx":
        if against is not None:
            raise UsageError(
                "--against does not apply to an .onnx file, which is compared with its own graph.",
                fix=f"Compare two models with: eomt-deploy compare {against} {path}",
            )
        if not path.is_file():
            raise ModelFileError(f"There is no model at {path}.", fix="Check the path.")
        return path
    if against is None and (built is None or not built.onnx):
        raise UsageError(
            f"{path} does not name the ONNX model that it was built from.",
            fix=f"Add it: eomt-deploy verify {path} --against model.onnx",
        )
    onnx = against or path.with_name(Path(built.onnx if built else "").name)
    if not onnx.is_file():
        raise ModelFileError(
            f"There is no ONNX model at {onnx}.",
            why=f"{path.name} is compared with the model that it was built from.",
            fix=f"Copy it to the folder of {path.name}, or use --against."
            if against is None
            else "Check the path.",
        )
    if built and built.onnx_sha256 and (found := onnx_sha256(onnx)) != built.onnx_sha256:
        raise ModelFileError(
            f"{onnx} is not the model that {path} was built from: its SHA-256 is {found[:12]}…, "
            f"expected {built.onnx_sha256[:12]}….",
            fix=f"Use the right one with --against, or `eomt-deploy compare {onnx} {path}`, which "
            "compares any two models.",
        )
    return onnx


def check_same_model(engine: Engine, reference: Engine, onnx: Path) -> None:
    """Check that an engine and its reference take the same inputs and have the same outputs.

    Raises:
        UsageError: they do not.
    """

    def shape(spec: ModelSpec) -> tuple[object, ...]:
        return spec.task, spec.image_size, spec.num_queries, [c.name for c in spec.classes]

    if shape(engine.spec) != shape(reference.spec):
        raise UsageError(
            f"{onnx} is another model than {engine.spec.name}: its task, size, queries or classes "
            "differ.",
            fix="Use --against with the ONNX model that it was built from.",
        )


def certificate(engine: Engine, result: Verification, limits: Precision) -> Certificate:
    """The certificate of an engine that passed on this machine."""
    gpu = current_gpu() if engine.device == "cuda" else None
    names = BACKENDS[engine.backend].distributions if engine.backend in BACKENDS else ()
    version = next((v for name in names if (v := package_version(name))), "")
    precision = engine.spec.precision
    types = computes_in(precision, engine.arithmetic or precision)
    return Certificate(
        images=result.images,
        inputs=result.inputs,
        relative_error=result.relative_max,
        class_agreement=result.class_agreement,
        mask_agreement=result.mask_agreement,
        label_agreement=result.label_agreement,
        max_relative_error=limits.max_relative_error,
        min_agreement=limits.min_agreement,
        backend=" ".join(filter(None, (engine.backend, version, "in", types))),
        device=gpu.name if gpu else cpu_name(),
        driver=gpu.driver if gpu else None,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def failure(
    onnx: Path, engine: Engine, problems: Sequence[str], *, nothing_written: bool, why: str = ""
) -> VerificationError:
    """The error for an engine that does not compute what its model computes."""
    name = engine.path.name if engine.path else "The model"
    ending = " Nothing was written." if nothing_written else ""
    hints = [
        "Use another version of the backend or driver, another --backend, or a higher precision."
    ]
    if not why:
        hints.append("`eomt-deploy verify --bisect` finds the part of the network.")
    if nothing_written:
        hints.append("Build with --no-check to get the file.")
    return VerificationError(
        f"{name} does not compute what {onnx.name} computes in FP32: {'; '.join(problems)} "
        f"({engine.where}).{ending}",
        why=why
        or "The backend, its driver or the device computes a part of the network wrongly, "
        "or less exactly than the limit allows.",
        fix=" ".join(hints),
    )
