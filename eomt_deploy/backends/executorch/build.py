"""Build of an ExecuTorch program from an exported FP32 model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eomt_deploy.backends.building import Progress, check_line, no_progress
from eomt_deploy.backends.certification import Check
from eomt_deploy.backends.executorch.config import PRECISIONS, TARGET, ExecuTorchConfig
from eomt_deploy.backends.executorch.engine import ExecuTorchEngine, installed_version, quiet
from eomt_deploy.backends.executorch.partitioners import DELEGATES, Delegate
from eomt_deploy.certificate import UNCHECKED, Certificate
from eomt_deploy.errors import BuildError, EomtDeployError, UsageError, first_line
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.model_file import read_model_file
from eomt_deploy.outputs import check_outputs
from eomt_deploy.sidecar import Sidecar, onnx_sha256, sha256, sidecar_path, write_sidecar
from eomt_deploy.spec import ModelSpec
from eomt_deploy.units import counted

CALLS, OUTSIDE, OPERATORS = "delegate_calls", "operators_outside", "outside"
"""Settings in the description: how much of the network the delegate runs."""
REFUSED = {
    "fp16": "XNNPACK has no FP16 GELU, so each block would leave the delegate.",
    "bf16": "XNNPACK runs only a few operators in BF16.",
    "int8": "The INT8 of our models stores scales that XNNPACK's quantised layers do not take.",
    "fp8": "XNNPACK has no FP8.",
}
"""Why a precision is not built, by name."""


@dataclass(frozen=True)
class ExecuTorchReport:
    """Result of a build.

    Attributes:
        files: the .pte and its .json.
        version: version of ExecuTorch.
        partitioner: what runs the network.
        batch: batch size.
        delegate_calls: number of calls of the delegate per inference.
        outside: operators outside the delegate, with their number.
        certificate: comparison with the ONNX model; None if there was none.
        warnings: warnings for the user, e.g. on skipped images.
    """

    files: tuple[Path, ...]
    version: str
    partitioner: str
    batch: int
    delegate_calls: int
    outside: dict[str, int]
    certificate: Certificate | None = None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        size = sum(file.stat().st_size for file in self.files)
        yield f"wrote {' + '.join(map(str, self.files))} ({size / 1e6:.1f} MB)"
        yield f"  ExecuTorch {self.version}, fp32 model, batch {self.batch}"
        title = DELEGATES[self.partitioner].title
        yield (
            f"  {counted(self.delegate_calls, 'call')} of {title}, "
            f"{counted(sum(self.outside.values()), 'operator')} outside"
            + (f" ({listed(self.outside)})" if self.outside else "")
        )
        yield f"  {check_line(self.certificate)}"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        return {**asdict(self), "files": [str(file) for file in self.files]}


def build_executorch(
    config: ExecuTorchConfig, progress: Progress = no_progress
) -> ExecuTorchReport:
    """Build a program, compare it with its ONNX model, and publish it with its description.

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        MissingDependencyError: ExecuTorch or the compiler of the delegate is not installed.
        UsageError: the model has another precision, batch size or operator.
        BuildError: ExecuTorch cannot convert the network.
        OutputError: the output cannot be written.
        VerificationError: the program does not compute what the ONNX model computes; nothing is
            written.
    """
    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    spec = read_model_file(config.onnx).spec
    batch = check_model(spec, config)
    version = installed_version()
    runs_here = config.partitioner == "xnnpack"
    check = Check(config, possible=runs_here)
    delegate = DELEGATES[config.partitioner]
    progress(f"converting for {delegate.title}", None)
    with quiet():
        content, calls, outside = convert(config, delegate, batch)
    spec = replace(spec, batch=batch)
    with staging_folder(config.output) as folder:
        path = folder / config.output.name
        path.write_bytes(content)
        sidecar = Sidecar(
            spec=spec,
            target=TARGET,
            library_version=version,
            precision=delegate.precision,
            batch=(batch, batch, batch),
            compute_capabilities=(),
            gpu=None,
            driver=None,
            version_compatible=True,
            hardware_compatibility="none",
            stripped=False,
            plan_bytes=len(content),
            plan_sha256=sha256(path),
            onnx=config.onnx.name,
            onnx_sha256=onnx_sha256(config.onnx),
            settings={
                "partitioner": config.partitioner,
                **({"soc": config.soc} if config.soc else {}),
                CALLS: str(calls),
                OUTSIDE: str(sum(outside.values())),
                OPERATORS: listed(outside) or "none",
            },
        )
        write_sidecar(path, sidecar)
        certificate = None
        if runs_here:
            certificate = check.run(
                partial(ExecuTorchEngine, path, device=None, threads=None), progress
            )
            write_sidecar(path, replace(sidecar, certificate=certificate))
        notes = tuple(check.notes) if runs_here else (UNCHECKED, *check.notes)
        # The old description is removed first and the new program is put in place last, so that a
        # program never exists beside the description of another one.
        target = sidecar_path(config.output)
        target.unlink(missing_ok=True)
        sidecar_path(path).replace(target)
        path.replace(config.output)
    files = config.output, target
    return ExecuTorchReport(
        files, version, config.partitioner, batch, calls, outside, certificate, notes
    )


def check_ready(_: ExecuTorchConfig) -> None:
    """Check that a build can start.

    Raises:
        MissingDependencyError: ExecuTorch is not installed.
    """
    installed_version()


def check_model(spec: ModelSpec, config: ExecuTorchConfig) -> int:
    """The batch size of the program.

    Raises:
        UsageError: the model has a precision that is not built, or another fixed batch size.
    """
    if spec.precision not in PRECISIONS:
        raise UsageError(
            f"{config.onnx} is {spec.precision}; ExecuTorch programs are built from FP32 models.",
            why=REFUSED[spec.precision],
            fix="Export it again with --precision fp32.",
        )
    wanted = config.fixed_batch
    if wanted is not None and spec.batch not in (None, wanted):
        raise UsageError(
            f"{config.onnx} has the fixed batch size {spec.batch}, but --fixed-batch is {wanted}.",
            fix="Leave --fixed-batch out, or export the checkpoint again without --batch.",
        )
    return wanted or spec.batch or 1


def convert(
    config: ExecuTorchConfig, delegate: Delegate, batch: int
) -> tuple[bytes, int, dict[str, int]]:
    """Convert the network.

    Returns:
        the program, the number of delegate calls, and the number of operators outside by name.

    Raises:
        MissingDependencyError: the compiler of the delegate is not installed on this machine.
        UsageError: the graph has an operator that is not supported, or the chip is unknown.
        BuildError: ExecuTorch cannot convert it.
    """
    import torch
    from executorch.exir import to_edge_transform_and_lower

    from eomt_deploy.backends.executorch.network import OnnxNetwork

    rewrite = config.rewrite and delegate.rewritten
    try:
        partitioner = delegate.make(config.soc)  # first, since its compiler may be missing
        network = OnnxNetwork(config.onnx, batch, rewrite=rewrite).eval()
        with torch.no_grad():
            traced = torch.export.export(network, (network.example,), strict=False)
            edge = to_edge_transform_and_lower(traced, partitioner=[partitioner])
            calls, outside = count_operators(edge.exported_program().graph_module)
            content = bytes(edge.to_executorch().buffer)
    except EomtDeployError:
        raise
    except Exception as error:  # ExecuTorch's exceptions have no common base class
        raise BuildError(
            f"ExecuTorch cannot convert {config.onnx} for {delegate.title}.",
            why=first_line(error),
            fix="Use the version of executorch in constraints.txt, or report this as a bug.",
        ) from error
    return content, calls, outside


def count_operators(module: Any) -> tuple[int, dict[str, int]]:
    """Number of delegate calls of a lowered graph, and of the operators outside them by name."""
    names = [str(n.target.__name__) for n in module.graph.nodes if n.op == "call_function"]
    outside = Counter(
        name.removeprefix("dim_order_ops.").removeprefix("aten.").split(".")[0].strip("_")
        for name in names
        if name not in ("executorch_call_delegate", "getitem")
    )
    return names.count("executorch_call_delegate"), dict(outside)


def listed(outside: dict[str, int]) -> str:
    """Operators outside the delegate as text: ``2 native_layer_norm, 1 to_dim_order_copy``."""
    return ", ".join(f"{count} {name}" for name, count in sorted(outside.items()))
