"""The description stored in a model file, read without running the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from xml.parsers import expat

from eomt_deploy.certificate import Certificate
from eomt_deploy.contract import check_contract
from eomt_deploy.errors import ModelFileError
from eomt_deploy.external_data import side_files
from eomt_deploy.fields import FILE_NAME, SHA256, Rule, Words, check_fields, shown
from eomt_deploy.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    import onnx

METADATA_FIELD = 14
"""Field number of ``metadata_props`` in ONNX's ModelProto."""
VARINT, LENGTH = 0, 2
"""Protobuf wire types: an integer, or a length followed by that many bytes."""
MAX_PROTOBUF_BYTES = 2_000_000_000
"""A protobuf message cannot exceed 2 GiB: larger weights go to a side file."""
MAX_METADATA_BYTES = 64 << 20
"""Maximum size of all metadata of a file."""
MAX_FIELDS = 10_000
"""Maximum number of fields of an ONNX file: opset versions, functions, metadata, one graph."""
MAX_XML_DEPTH = 100
MAX_XML_BYTES = 64 << 20
"""OpenVINO's .xml of the largest model has a few megabytes; the weights are in the .bin."""
ARITHMETIC = ("fp32", "bf16", "fp16")
"""Values that `build` writes into an .xml: the arithmetic of the unquantised part."""
CERTIFICATE_KEY = "certificate"
CORE_ML_SUFFIX = ".mlpackage"
CORE_ML_MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
CORE_ML_WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
"""Files of Core ML packages, which are folders: the program with the description, and its
weights."""
FACT_PREFIX = "eomt_deploy."
FACTS = Words(100, 10_000)
"""What else `build` stores in a Core ML package, with this prefix."""
CORE_ML_METADATA = (2, 100, 100)
"""Field numbers of Core ML's Model.proto: Model.description, its metadata, and userDefined."""
EXTERNAL_SUFFIX = ".data"
"""Models too large for one protobuf keep their weights in ``<model>.onnx.data``."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of a graph input or output; dynamic sizes are strings."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelFile:
    """Facts of a model file: description, graph, size in bytes with all side files."""

    path: Path
    spec: ModelSpec
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]
    bytes: int


def parse_spec(metadata: Mapping[str, str], path: Path) -> ModelSpec:
    """The description in an ONNX file's metadata.

    Raises:
        ModelFileError: the description is missing or cannot be read.
    """
    if METADATA_KEY not in metadata:
        raise ModelFileError(
            f"{path} was not written by eomt-deploy: its metadata has no {METADATA_KEY}.",
            why="Classes, task and sizes are stored in the file; results cannot be computed "
            "without them.",
            fix="Export the checkpoint: eomt-deploy export CHECKPOINT -o model.onnx",
        )
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ``.onnx`` file, without reading its graph, which may be gigabytes.

    A protobuf message is a sequence of fields, each preceded by its length
    (https://protobuf.dev/programming-guides/encoding), so that other fields can be skipped.

    Returns:
        the metadata by key; empty if the file is not an ONNX message. Bytes that are not UTF-8
        become surrogates, which :func:`parse_spec` refuses.

    Raises:
        ModelFileError: there is more metadata than eomt-deploy writes.
    """
    found: dict[str, str] = {}
    left = MAX_METADATA_BYTES
    with path.open("rb") as file, suppress(IndexError):
        for number, (field, length) in enumerate(_fields(file, path.stat().st_size)):
            left -= length if field == METADATA_FIELD else 0
            if left < 0 or number >= MAX_FIELDS:
                raise ModelFileError(
                    f"{path} has more than {MAX_METADATA_BYTES >> 20} MiB of metadata or more than "
                    f"{MAX_FIELDS} fields.",
                    fix="Export the checkpoint again.",
                )
            if field == METADATA_FIELD:
                entry = BytesIO(file.read(length))
                parts = {part: _text(entry.read(size)) for part, size in _fields(entry, length)}
                found[parts.get(1, "")] = parts.get(2, "")
    return found


def _text(value: str | bytes) -> str:
    """Text of a protobuf message; the library returns bytes if they are not valid UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="surrogateescape")


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield number and length of each length-delimited field, with the file at its content."""
    while file.tell() < size:
        field, kind = divmod(_varint(file), 8)
        length = _varint(file)
        if kind == VARINT:
            continue
        end = file.tell() + length
        if kind != LENGTH or end > size:
            return
        yield field, length
        file.seek(end)


def _varint(file: BinaryIO) -> int:
    """Read a varint: seven bits per byte, lowest first, until a byte without the eighth bit.

    Raises:
        IndexError: the file ends, or the number has more than 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise IndexError


class XmlFacts(NamedTuple):
    """What `build` stored in OpenVINO's .xml.

    Attributes:
        spec: the model's description.
        arithmetic: what the unquantised layers compute in; None if `build` did not decide.
        onnx: file name of the ONNX model; empty in older files.
        onnx_sha256: its SHA-256; empty in older files.
        certificate: comparison with the ONNX model; None if there was none.
    """

    spec: ModelSpec
    arithmetic: str | None
    onnx: str
    onnx_sha256: str
    certificate: Certificate | None


def read_xml(path: Path) -> XmlFacts:
    """Read what `build` stored in OpenVINO's .xml.

    Raises:
        ModelFileError: the file is missing, damaged, or was not written by eomt-deploy.
    """
    try:
        if (size := path.stat().st_size) > MAX_XML_BYTES:
            raise ModelFileError(
                f"{path} has {size:,} bytes, the maximum of an .xml file is {MAX_XML_BYTES:,}.",
                fix="Rebuild it: eomt-deploy build",
            )
        values = _xml_values(path.read_bytes())
    except OSError as error:
        raise ModelFileError(
            f"There is no model at {path}: {error.strerror}.", fix="Check the path."
        ) from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise ModelFileError(
            f"{path} is not an .xml file of OpenVINO: {error}.", fix="Rebuild it: eomt-deploy build"
        ) from error
    return XmlFacts(
        parse_spec(values, path),
        check_arithmetic(values.get("arithmetic"), path),
        _checked(FILE_NAME, values.get("onnx"), "onnx", path),
        _checked(SHA256, values.get("onnx_sha256"), "onnx_sha256", path),
        _certificate(values.get(CERTIFICATE_KEY), path),
    )


def _checked(rule: Rule, value: str | None, name: str, path: Path) -> str:
    """A value of an .xml; empty if it is missing."""
    if value is None:
        return ""
    check_fields(rule, value, str(path), "Rebuild it: eomt-deploy build", name=name)
    return value


def _certificate(value: str | None, path: Path) -> Certificate | None:
    try:
        return None if value is None else Certificate.from_json(value)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error


def _xml_values(content: bytes) -> dict[str, str]:
    """The values below net/rt_info/framework and net/rt_info/eomt_deploy, by name.

    The file is not parsed into a tree and entities are refused, so that neither deep nesting nor
    entity expansion can fill the memory.
    """
    values: dict[str, str] = {}
    open_tags: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(open_tags) == 3 and open_tags[1:] in (
            ["rt_info", "framework"],
            ["rt_info", "eomt_deploy"],
        ):
            values[tag] = attributes.get("value", "")
        open_tags.append(tag)
        if len(open_tags) > MAX_XML_DEPTH:
            raise ValueError(f"it is nested more than {MAX_XML_DEPTH} levels deep")

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type declaration, which OpenVINO does not write")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_tags.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)  # in one call: long values are slow to parse in many pieces
    return values


def check_arithmetic(value: str | None, path: Path) -> str | None:
    """Check the arithmetic that `build` wrote, and return it; None if it wrote none.

    Raises:
        ModelFileError: the value is not one of :data:`ARITHMETIC`.
    """
    if value is not None and value not in ARITHMETIC:
        raise ModelFileError(
            f"{path}: `arithmetic` must be {' or '.join(ARITHMETIC)}, got {shown(value)}.",
            fix="Rebuild it: eomt-deploy build",
        )
    return value


class CoreMlFacts(NamedTuple):
    """What `build` stored in a Core ML package.

    Attributes:
        spec: the model's description.
        facts: other values by name, all printable: ``onnx``, ``onnx_sha256``, ``weights``, ...
    """

    spec: ModelSpec
    facts: Mapping[str, str]


def read_core_ml(package: Path) -> CoreMlFacts:
    """Read what `build` stored in a Core ML package. Neither program nor weights are read.

    Args:
        package: the ``.mlpackage`` folder.

    Raises:
        ModelFileError: it is missing, damaged, or was not written by eomt-deploy.
    """
    try:
        with (package / CORE_ML_MODEL).open("rb") as file:
            content = file.read(MAX_METADATA_BYTES)
    except OSError as error:
        raise ModelFileError(
            f"{package} is not a Core ML package: {CORE_ML_MODEL} cannot be read "
            f"({error.strerror}).",
            fix="Check the path, or build it again: eomt-deploy build",
        ) from error
    *outer, last = CORE_ML_METADATA
    for wanted in outer:
        content = next(_contents(content, wanted), b"")
    found = {}
    for entry in _contents(content, last):
        key, value = (_text(next(_contents(entry, number), b"")) for number in (1, 2))
        found[key] = value
    spec = parse_spec(found, package)
    found = {
        key.removeprefix(FACT_PREFIX): value
        for key, value in found.items()
        if key.startswith(FACT_PREFIX) and key != METADATA_KEY
    }
    what = f"The description in {package}"
    check_fields(FACTS, found, what, "Build it again: eomt-deploy build", name="facts")
    return CoreMlFacts(spec, found)


def _contents(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of all fields with one number, up to the first damaged one."""
    file = BytesIO(message)
    with suppress(IndexError):
        for number, (field, length) in enumerate(_fields(file, len(message))):
            if number >= MAX_FIELDS:
                return
            if field == wanted:
                yield file.read(length)


def read_model_file(path: str | Path) -> ModelFile:
    """Describe an exported ``.onnx`` file; weights in a side file are not read.

    Raises:
        ModelFileError: the file is missing, not ONNX, or was not written by eomt-deploy.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ModelFileError(
            f"{path} is not an .onnx file.",
            fix="Pass the .onnx file that `eomt-deploy export` wrote.",
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    except (DecodeError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not an ONNX model, or it is damaged.", fix="Export or copy it again."
        ) from error
    metadata = {_text(entry.key): _text(entry.value) for entry in model.metadata_props}
    spec = parse_spec(metadata, path)
    inputs = tuple(_tensor(value) for value in model.graph.input)
    outputs = tuple(_tensor(value) for value in model.graph.output)
    check_contract(spec, {t.name: (t.dtype, t.shape) for t in (*inputs, *outputs)}, path)
    sides = side_files(path, complete=False)
    return ModelFile(
        path=path,
        spec=spec,
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        inputs=inputs,
        outputs=outputs,
        operators=dict(Counter(_text(node.op_type) for node in model.graph.node).most_common()),
        bytes=path.stat().st_size + sum(side.stat().st_size for side in sides),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:  # not a tensor, or a type that numpy does not have
        dtype = "unknown"
    shape = tuple(_text(d.dim_param) or d.dim_value for d in tensor.shape.dim)
    return TensorInfo(_text(value.name), dtype, shape)
