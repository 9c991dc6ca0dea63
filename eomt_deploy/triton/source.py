"""A model file as Triton needs it: its description, its batch, its files and its backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.external_data import side_files
from eomt_deploy.model_file import parse_spec, read_model_file, read_xml
from eomt_deploy.package_metadata import read_metadata
from eomt_deploy.sidecar import check_plan, known_target, read_sidecar, sidecar_path
from eomt_deploy.spec import ModelSpec
from eomt_deploy.triton.options import TritonConfig


@dataclass(frozen=True)
class Native:
    """The backend of Triton that runs a model file.

    Attributes:
        field: field of config.pbtxt that selects it: ``platform`` or ``backend``.
        value: value of that field.
        file: name that the model file must have.
        kinds: devices that it runs on.
    """

    field: str
    value: str
    file: str
    kinds: tuple[str, ...]


ONNX = Native("platform", "onnxruntime_onnx", "model.onnx", ("cpu", "cuda"))
TENSORRT = Native("platform", "tensorrt_plan", "model.plan", ("cuda",))
OPENVINO = Native("backend", "openvino", "model.xml", ("cpu",))


@dataclass(frozen=True)
class Source:
    """One model file.

    Attributes:
        path: the file.
        spec: its description.
        batch: minimum and maximum number of inputs of one call; the maximum is None if there is no
            limit.
        files: all files that it needs, by their names in the version folder. The first is the model
            file itself, as ``model`` with its own suffix.
        native: backend of Triton that runs it; None if only eomt-deploy runs it.
        devices: devices that eomt-deploy runs it on.
        remarks: sentences for the user.
    """

    path: Path
    spec: ModelSpec
    batch: tuple[int, int | None]
    files: dict[str, Path]
    native: Native | None
    devices: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether the network takes only one batch size."""
        return self.batch[0] == self.batch[1]

    def native_files(self) -> dict[str, Path]:
        """The files by the names that Triton's backend expects."""
        assert self.native is not None
        old, new = next(iter(self.files)), self.native.file
        return {
            new + name.removeprefix(old) if name in (old, f"{old}.json") else name: path
            for name, path in self.files.items()
        }


def read_source(path: Path) -> Source:
    """Describe a model file without opening it with a backend.

    Raises:
        ModelFileError: the file is missing, damaged, or was not written by eomt-deploy.
    """
    readers = {".onnx": _onnx, ".engine": _engine, ".xml": _openvino, ".pt2": _package}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ModelFileError(
            f"{path} is not a model file: its suffix is {suffix or 'missing'}, expected "
            f"{', '.join(readers)}.",
            fix="Create a model file with `eomt-deploy export`.",
        )
    if not path.is_file():
        raise ModelFileError(f"There is no model at {path}.", fix="Check the path.")
    return readers[suffix](path)


def _batch(spec: ModelSpec) -> tuple[int, int | None]:
    return (1, None) if spec.batch is None else (spec.batch, spec.batch)


def _onnx(path: Path) -> Source:
    spec = read_model_file(path).spec
    # A model names its weights by their path, so they keep their names.
    sides = {side.relative_to(path.parent).as_posix(): side for side in side_files(path)}
    if "model.onnx" in sides:
        raise ModelFileError(
            f"{path} keeps its weights in a file named model.onnx, which is the name of the model "
            "itself in Triton.",
            fix="Export the checkpoint again with another file name.",
        )
    native = None if spec.precision == "fp8" else ONNX
    files = {"model.onnx": path, **sides}
    return Source(path, spec, _batch(spec), files, native, ("cpu", "cuda"))


def _engine(path: Path) -> Source:
    sidecar = read_sidecar(path)
    check_plan(path, sidecar, full=True)
    target = known_target(sidecar)
    files = {"model.engine": path, "model.engine.json": sidecar_path(path)}
    remarks = [
        f"{path.name} needs {BACKENDS[target].title} {sidecar.library_version}"
        + (" or a compatible version" if sidecar.version_compatible else "")
        + f" and a GPU of compute capability {', '.join(sidecar.compute_capabilities) or 'any'}."
    ]
    if sidecar.version_compatible and target == "tensorrt":
        remarks.append(
            "Start the server with --backend-config=tensorrt,version-compatible=true (--form bls, "
            "ensemble) or EOMT_DEPLOY_TRUST_ENGINES=1 (--form python): the engine contains code "
            "for the CPU."
        )
    if sidecar.stripped:
        onnx = path.with_name(Path(sidecar.onnx).name)
        if not onnx.is_file():
            raise ModelFileError(
                f"{path} contains no weights, and {onnx} does not exist.",
                fix=f"Copy {onnx.name} to the folder of the engine, or rebuild the engine without "
                "--strip-weights.",
            )
        files[onnx.name] = onnx
        files |= {side.relative_to(onnx.parent).as_posix(): side for side in side_files(onnx)}
    native = TENSORRT if target == "tensorrt" and not sidecar.stripped else None
    batch = sidecar.batch[0], sidecar.batch[2]
    return Source(path, sidecar.spec, batch, files, native, ("cuda",), tuple(remarks))


def _openvino(path: Path) -> Source:
    spec = read_xml(path).spec
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelFileError(
            f"{weights} is missing: it contains the weights of {path.name}.",
            fix="Copy both files again, or rebuild them: eomt-deploy build",
        )
    files = {"model.xml": path, "model.bin": weights}
    return Source(path, spec, _batch(spec), files, OPENVINO, ("cpu",))


def _package(path: Path) -> Source:
    spec = parse_spec(read_metadata(path), path)
    return Source(path, spec, _batch(spec), {"model.pt2": path}, None, ("cpu", "cuda"))


def check_options(source: Source, options: TritonConfig) -> None:
    """Refuse options that do not fit a model.

    Raises:
        UsageError: Triton has no backend for the file, or a device, a backend or the batch does
            not fit.
    """
    native = source.native
    able = source.devices if options.form == "python" or native is None else native.kinds
    if options.device not in (None, *able):
        raise UsageError(
            f"{source.path.name} does not run on the device {options.device!r}.",
            fix=f"Use --device {' or '.join(able)}, or leave it out.",
        )
    if options.form == "python":
        _check_backend(source, options)
    else:
        _check_form(source, options)


def _check_backend(source: Source, options: TritonConfig) -> None:
    name, suffix = options.backend, source.path.suffix.lower()
    if name is None:
        return
    fitting = [
        known
        for known, backend in BACKENDS.items()
        if suffix in backend.suffixes and options.device in (None, *backend.devices)
    ]
    if name not in fitting:
        raise UsageError(
            f"The backend {name!r} does not run {source.path.name}"
            + (f" on the device {options.device!r}." if options.device else "."),
            fix=f"Use --backend {' or '.join(fitting)}, or leave it out.",
        )


def _check_form(source: Source, options: TritonConfig) -> None:
    if source.native is None:
        raise UsageError(
            f"Triton has no backend that runs {source.path.name}.",
            why="TensorRT-RTX engines, engines without weights, FP8 .onnx files and .pt2 files are "
            "run by eomt-deploy.",
            fix="Use --form python.",
        )
    if source.is_fixed and options.max_queue_delay_us:
        raise UsageError(
            f"--max-queue-delay-us does not apply: {source.path.name} has a fixed batch, so Triton "
            "does not combine requests.",
            fix="Leave it out, use --form python, or export the model with a dynamic batch.",
        )
    if options.form == "ensemble":
        if source.is_fixed or source.batch[0] > 1:
            raise UsageError(
                f"{source.path.name} has a fixed batch, and an ensemble passes the inputs of one "
                "request to the network as they are.",
                fix="Use --form bls or python, or export the model with a dynamic batch.",
            )
        limit = min(options.batch_limit, source.batch[1] or options.batch_limit)
        if source.spec.resize == "windows" and limit < 3:
            raise UsageError(
                f"A batch of at most {limit} is too small for {source.path.name}: a semantic model "
                "cuts an image into two or three windows.",
                why="An ensemble passes all windows of an image to the network in one call.",
                fix="Use --form bls or python, or a larger batch.",
            )
