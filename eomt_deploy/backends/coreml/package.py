"""The ``.mlpackage`` folder: saved, checked from its files, described, and put in place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct

from eomt_deploy.backends.coreml.program import TARGET
from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import BuildError, OutputError, UsageError, first_line
from eomt_deploy.files import unwritable
from eomt_deploy.model_file import CORE_ML_MODEL, CORE_ML_WEIGHTS
from eomt_deploy.outputs import is_ours, not_ours
from eomt_deploy.spec import ModelSpec

REPORT = "Use the version of coremltools in constraints.txt, or report this as a bug."
"""The fix of errors that only another version of coremltools can cause."""
MAIN = "main"
FILES = frozenset(map(str, (CORE_ML_MODEL, CORE_ML_WEIGHTS, "Manifest.json")))
"""All files of a package that coremltools writes."""
STORED = {"constexpr_blockwise_shift_scale": "data", "constexpr_lut_to_dense": "indices"}
"""Operations that Core ML computes at load time, and the argument with their small weights."""
NO_OPERATORS = ("const", *STORED)


@dataclass(frozen=True)
class Structure:
    """What the files of a package contain.

    Attributes:
        operators: number of operations of the program by name, the most frequent first.
        weight_types: number of stored tensors with at least two dimensions, by type.
    """

    operators: Mapping[str, int]
    weight_types: Mapping[str, int]


def save_package(program: Any, spec: ModelSpec, package: Path) -> None:
    """Convert a program and save it.

    Raises:
        BuildError: coremltools refuses it.
        OutputError: it cannot be written.
    """
    height, width = spec.image_size
    image = ct.ImageType(
        name=INPUT, shape=(1, 3, height, width), color_layout=ct.colorlayout.RGB
    )  # fmt: skip
    try:
        model = ct.convert(
            program,
            inputs=[image],
            minimum_deployment_target=TARGET,
            compute_precision=ct.precision.FLOAT32,  # leave the types as they are in the program
            skip_model_load=True,
        )
        model.save(str(package))
    except OSError as error:
        raise unwritable(package, error) from error
    except Exception as error:  # coremltools' exceptions have no common base class
        raise BuildError(
            "coremltools cannot convert this model.",
            why=first_line(error),
            fix=REPORT,
        ) from error


def describe_package(package: Path, metadata: Mapping[str, str], summary: str) -> None:
    """Write the description into the program's file, which does not contain the weights."""
    proto = ct.utils.load_spec(str(package))
    description = proto.description
    description.metadata.userDefined.update(metadata)
    description.metadata.shortDescription = summary
    texts = {
        INPUT: "RGB image, resized and padded as the description says",
        OUTPUTS[0]: "Score of each query for each class, before the softmax; the last class is "
        '"no object"',
        OUTPUTS[1]: "Mask of each query, before the sigmoid, a quarter of the image's size",
    }
    for feature in (*description.input, *description.output):
        feature.shortDescription = texts[feature.name]
    file = package / CORE_ML_MODEL
    file.unlink()  # coremltools makes it readable for its owner only; a new file is as any other
    file.write_bytes(proto.SerializeToString())


def check_structure(package: Path, spec: ModelSpec) -> Structure:
    """Check the saved files: versions, input, outputs, and that every shape is fixed.

    Raises:
        BuildError: something differs from what an EoMT model needs.
    """
    proto = ct.utils.load_spec(str(package))
    problems = list(_problems(proto, spec))
    if problems:
        raise BuildError(
            f"The Core ML package is wrong: {'; '.join(problems)}.",
            fix=REPORT,
        )
    operations = _operations(proto)
    names = (op.type for op in operations if op.type not in NO_OPERATORS)
    return Structure(
        dict(Counter(names).most_common()), dict(Counter(_weight_types(operations)).most_common())
    )


def _problems(proto: Any, spec: ModelSpec) -> Iterator[str]:
    if proto.specificationVersion != TARGET:
        yield f"its format is version {proto.specificationVersion}, expected {TARGET.value}"
    if proto.WhichOneof("Type") != "mlProgram" or list(proto.mlProgram.functions) != [MAIN]:
        yield "it does not contain exactly one ML program"
        return
    inputs = {feature.name: feature.type for feature in proto.description.input}
    image = inputs[INPUT].imageType if list(inputs) == [INPUT] else None
    if image is None or (image.height, image.width) != spec.image_size:
        yield f"its input is not one image of {spec.image_size[1]}x{spec.image_size[0]} pixels"
    elif image.colorSpace != image.RGB or image.WhichOneof("SizeFlexibility"):
        yield "its input is not an RGB image of a fixed size"
    wanted = {
        OUTPUTS[0]: (1, spec.num_queries, len(spec.classes) + 1),
        OUTPUTS[1]: (1, spec.num_queries, *spec.mask_size),
    }
    found = {f.name: tuple(f.type.multiArrayType.shape) for f in proto.description.output}
    if found != wanted:
        yield f"its outputs are {found}, expected {wanted}"
    for operation in _operations(proto):
        for value in operation.outputs:
            if any(not d.HasField("constant") for d in value.type.tensorType.dimensions):
                yield f"the shape of {value.name} is not fixed"


def _operations(proto: Any) -> list[Any]:
    function = proto.mlProgram.functions[MAIN]
    return list(function.block_specializations[function.opset].operations)


def _weight_types(operations: list[Any]) -> Iterator[str]:
    """The types of all stored tensors that are matrices or kernels."""
    for operation in operations:
        kind = operation.outputs[0].type.tensorType
        if operation.type == "const" and kind.rank > 1:
            yield _type_name(kind)
        elif operation.type in STORED:
            stored = operation.inputs.get(STORED[operation.type]) or operation.attributes.get(
                STORED[operation.type]
            )
            value = stored.arguments[0].value if hasattr(stored, "arguments") else stored
            if value.type.tensorType.rank:
                yield _type_name(value.type.tensorType)


def _type_name(kind: Any) -> str:
    from coremltools.proto.MIL_pb2 import DataType

    return str(DataType.Name(kind.dataType)).lower()


def check_place(package: Path, inputs: tuple[Path, ...], *, overwrite: bool) -> None:
    """Check that a package may replace what is there.

    Raises:
        OutputError: it would replace a file that eomt-deploy did not write.
        UsageError: it would replace an input.
    """
    if not package.exists():
        return
    if not package.is_dir():
        raise not_ours(package, "-o")
    place = Path(os.path.realpath(package))
    for path in inputs:
        if place in (found := Path(os.path.realpath(path)), *found.parents):
            raise UsageError(
                f"-o would replace {package}, which contains {path}, an input of this command.",
                fix="Choose another place for the package.",
            )
    if overwrite:
        return
    files = sorted(path for path in package.rglob("*") if not path.is_dir())
    ours = is_ours(package / CORE_ML_MODEL)
    for file in files:
        if not ours or str(file.relative_to(package)) not in FILES:
            raise not_ours(file, "-o")


def publish(staged: Path, package: Path) -> None:
    """Rename a new package into place. An old one is first moved into the staging folder, and is
    put back if the new one cannot be renamed.

    Raises:
        OutputError: neither is possible.
    """
    old = staged.with_name("old")
    try:
        if package.exists():
            os.replace(package, old)
        try:
            os.replace(staged, package)
        except OSError:
            if old.exists():
                os.replace(old, package)
            raise
    except OSError as error:
        raise OutputError(
            f"{package} cannot be replaced: {error.strerror}.",
            fix="Close programs that have the old package open, and build again.",
        ) from error
