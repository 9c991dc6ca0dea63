"""Build of a Core ML package from an exported model, and its evaluation on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eomt_deploy.backends.building import Progress, no_progress
from eomt_deploy.backends.certification import Check, failure, open_reference
from eomt_deploy.backends.coreml.config import PRECISIONS, CoreMlConfig
from eomt_deploy.backends.coreml.library import check_installed, collected, load_quietly
from eomt_deploy.backends.verification import Verification, compare
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import UsageError, VerificationError
from eomt_deploy.fields import is_printable
from eomt_deploy.files import GENERATOR, staging_folder, through_links
from eomt_deploy.model_file import CORE_ML_WEIGHTS, FACT_PREFIX, read_model_file
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import PRECISIONS as ALL
from eomt_deploy.precision import engine_limits
from eomt_deploy.sidecar import onnx_sha256, sha256
from eomt_deploy.spec import METADATA_KEY, ModelSpec
from eomt_deploy.units import counted, percent

UNITS = {"fp32": "CPU and GPU", "fp16": "CPU, GPU and, in its FP16 parts, Neural Engine"}
"""What can run a program, by its precision: the Neural Engine computes in FP16 only."""
SMALL_WEIGHTS = ALL["int8"]
"""Limits for a package with smaller weights: those of an INT8 export."""


@dataclass(frozen=True)
class CoreMlReport:
    """Result of a build.

    Attributes:
        files: all files of the package.
        package: the folder.
        bytes: their size.
        version: version of coremltools.
        precision: precision of the model.
        weights: how the weights of the linear layers are stored.
        weight_types: number of stored tensors with at least two dimensions, by type.
        operators: number of operations of the program, by name.
        evaluation: the program, evaluated without Core ML, compared with the ONNX model; None with
            ``--no-check``.
        certificate: None, since Core ML itself did not run.
        warnings: warnings for the user, e.g. on skipped images.
    """

    files: tuple[Path, ...]
    package: Path
    bytes: int
    version: str
    precision: str
    weights: str
    weight_types: Mapping[str, int]
    operators: Mapping[str, int]
    evaluation: Verification | None
    certificate: Certificate | None = None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        yield f"wrote {self.package} ({self.bytes / 1e6:.1f} MB)"
        yield (
            f"  coremltools {self.version}, {self.precision} model, {weights_text(self.weights)}, "
            f"for iOS 18 or macOS 15"
        )
        count = counted(sum(self.operators.values()), "operation")
        yield f"  {count}, for {UNITS[self.precision]}"
        yield f"  {evaluation_text(self.evaluation)}"
        yield "  Core ML itself did not run: check the package with verify_on_mac.py on a Mac"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        return {
            **asdict(self),
            "files": [str(file) for file in self.files],
            "package": str(self.package),
            "evaluation": self.evaluation and self.evaluation.to_dict(),
        }


def weights_text(weights: str) -> str:
    """How the weights are stored, for people."""
    return "unchanged weights" if weights == "model" else f"{weights} weights"


def evaluation_text(result: Verification | None) -> str:
    """The result of the evaluation as one sentence."""
    if result is None:
        return "not compared with the ONNX model"
    return (
        f"evaluated without Core ML on {counted(result.images, 'image')}, compared with the ONNX "
        f"model: error {percent(float(f'{result.relative_max:.0e}'))} of the largest logit, equal "
        f"classes {result.class_agreement:.2%}, mask signs {result.mask_agreement:.2%}, labels "
        f"{result.label_agreement:.2%}"
    )


def build_core_ml(config: CoreMlConfig, progress: Progress = no_progress) -> CoreMlReport:
    """Build a package, evaluate its program without Core ML, and put it in place.

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        UsageError: the model has another precision, a fixed batch size or an unknown operator.
        MissingDependencyError: coremltools, or a package for the evaluation, is not installed.
        BuildError: coremltools cannot convert the model.
        OutputError: a file cannot be written, or would replace one that eomt-deploy did not write.
        VerificationError: the program does not compute what the ONNX model computes; nothing is
            written.
    """
    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    spec = _checked(read_model_file(config.onnx).spec, config)
    version = check_installed()
    check = Check(config)
    progress("importing coremltools", None)
    load_quietly()
    from eomt_deploy.backends.coreml import package
    from eomt_deploy.backends.coreml.program import make_program

    package.check_place(config.output, config.inputs, overwrite=config.overwrite)
    with staging_folder(config.output) as folder, collected() as warnings:
        staged = folder / config.output.name
        progress("converting", None)
        program = make_program(config.onnx, spec, config.weights)
        package.save_package(program, spec, staged)
        del program  # it contains the weights
        structure = package.check_structure(staged, spec)
        result = _evaluate(config, spec, check, staged, progress) if config.check else None
        facts = {
            "generator": GENERATOR,
            "onnx": config.onnx.name if is_printable(config.onnx.name) else "",
            "onnx_sha256": onnx_sha256(config.onnx),
            "weights": config.weights,
            "weights_sha256": sha256(staged / CORE_ML_WEIGHTS),
            "operators": _listed(structure.operators),
            "weight_types": _listed(structure.weight_types),
            "evaluation": evaluation_text(result),
        }
        metadata = {METADATA_KEY: spec.to_json()}
        metadata |= {f"{FACT_PREFIX}{name}": value for name, value in facts.items()}
        summary = f"{spec.name}: {spec.task} segmentation, {counted(len(spec.classes), 'class')}"
        package.describe_package(staged, metadata, summary)
        package.publish(staged, config.output)
    files = tuple(config.output / name for name in sorted(package.FILES))
    return CoreMlReport(
        files, config.output, sum(file.stat().st_size for file in files), version,
        spec.precision, config.weights, structure.weight_types, structure.operators, result,
        warnings=(*warnings, *check.notes),
    )  # fmt: skip


def _checked(spec: ModelSpec, config: CoreMlConfig) -> ModelSpec:
    """The description of the package, whose batch size is 1.

    Raises:
        UsageError: the model has a precision that is not built, or a larger fixed batch size.
    """
    if spec.precision not in PRECISIONS:
        quantized = ALL[spec.precision].quantized
        raise UsageError(
            f"{config.onnx} is {spec.precision}; Core ML packages are built from FP32 and FP16 "
            "models.",
            why="It has quantised activations, which the Neural Engine runs in another form."
            if quantized
            else f"Core ML has no {spec.precision.upper()}.",
            fix="Export it again with --precision fp16"
            + (", and build with --weights int8." if quantized else "."),
        )
    if spec.batch not in (None, 1):
        raise UsageError(
            f"{config.onnx} has the fixed batch size {spec.batch}, but the input of a Core ML "
            "package is one image.",
            fix="Export the checkpoint again without --batch.",
        )
    return replace(spec, batch=1)


def _evaluate(
    config: CoreMlConfig, spec: ModelSpec, check: Check, staged: Path, progress: Progress
) -> Verification:
    """Compare the saved program with the ONNX model in FP32.

    Raises:
        VerificationError: they differ by more than the limits.
    """
    from eomt_deploy.backends.coreml.evaluation import EvaluatedPackage

    with EvaluatedPackage(staged, spec) as engine, open_reference(config.onnx) as reference:
        result = compare(engine, reference, check.images(spec), lambda text: progress(text, None))
        if config.weights == "model":
            if problems := result.problems(engine_limits(spec.precision)):
                raise failure(config.onnx, engine, problems, nothing_written=True)
        elif problems := result.problems(SMALL_WEIGHTS):
            raise VerificationError(
                f"With {config.weights} weights, {staged.name} does not compute what "
                f"{config.onnx.name} computes: {'; '.join(problems)}. Nothing was written.",
                why="The weights are rounded too much for this model.",
                fix="Use more bits, e.g. --weights int8, or leave --weights out. Build with "
                "--no-check to get the package.",
            )
    return result


def _listed(counts: Mapping[str, int]) -> str:
    """Counts as text: ``16 linear, 3 conv``."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
