"""The build of an engine: read, parse, check, compile, read back, write."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eomt_deploy.backends.building import Progress, check_line, no_progress
from eomt_deploy.backends.certification import Check
from eomt_deploy.backends.tensorrt import graph, library, settings, timing_cache
from eomt_deploy.backends.tensorrt.compatibility import check_machine, this_machine
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.backends.tensorrt.engine import TensorRtEngine
from eomt_deploy.backends.tensorrt.layers import (
    LayerReport,
    read_inspector,
    read_network,
)
from eomt_deploy.backends.tensorrt.monitor import make_monitor, run_cancellable
from eomt_deploy.certificate import Certificate
from eomt_deploy.devices import Gpu, current_gpu
from eomt_deploy.errors import BuildError, DeviceError, VerificationError
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.model_file import read_model_file
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import QUANTIZED, slower_than_fp16, wider
from eomt_deploy.sidecar import Sidecar, onnx_sha256, sidecar_path, write_sidecar
from eomt_deploy.spec import ModelSpec

SHOWN_LAYERS = 8
KEPT = {"kept_fp32", "fp32_islands"}
"""Provenance keys of models with layers that the export kept in FP32."""


@dataclass(frozen=True)
class BuildReport:
    """Result of a build.

    Attributes:
        engine: the engine file.
        sidecar: its description, as written beside it.
        layers: its layers and their precisions.
        seconds: time that the library took to build it.
        warnings: warnings for the user.
    """

    engine: Path
    sidecar: Sidecar
    layers: LayerReport
    seconds: float
    warnings: tuple[str, ...]

    @property
    def certificate(self) -> Certificate | None:
        return self.sidecar.certificate

    @property
    def files(self) -> tuple[Path, ...]:
        return self.engine, sidecar_path(self.engine)

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        facts, layers = self.sidecar, self.layers
        yield (
            f"wrote {' + '.join(map(str, self.files))} ({facts.plan_bytes / 1e6:.1f} MB, "
            f"{self.seconds:.1f} s)"
        )
        yield (
            f"  {facts.target} {facts.library_version} for "
            f"{', '.join(facts.compute_capabilities)}, {facts.precision}, "
            f"batch {':'.join(map(str, facts.batch))}"
        )
        counts = ", ".join(f"{count} in {precision}" for precision, count in layers.heavy.items())
        yield f"  matrix products and convolutions in the {layers.source}: {counts}"
        table = [f"{count} {kind} {precision}" for kind, precision, count in layers.table()]
        rest = len(table) - SHOWN_LAYERS
        more = f", {rest} more" if rest > 0 else ""
        yield f"  layers: {', '.join(table[:SHOWN_LAYERS])}{more}"
        yield f"  {check_line(self.certificate)}"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        layers = self.layers
        return {
            "files": [str(file) for file in self.files],
            "sidecar": asdict(self.sidecar),
            "seconds": round(self.seconds, 3),
            "layers": {
                "read_from": layers.source,
                "precision": layers.precision,
                "heavy": dict(layers.heavy),
                "higher": list(layers.higher),
                "table": [
                    {"type": kind, "precision": precision, "count": count}
                    for kind, precision, count in layers.table()
                ],
            },
            "warnings": list(self.warnings),
        }


def build(config: TensorRtConfig, progress: Progress = no_progress) -> BuildReport:
    """Build an engine from an ONNX model that eomt-deploy exported.

    Ctrl-C and SIGTERM stop the builder. After an interrupt or error, no partial files remain.

    Args:
        config: configuration of the build.
        progress: called with the name of each phase and the finished fraction (0 to 1).

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        UsageError: an option does not apply to this model.
        MissingDependencyError: the library is not installed or too old.
        DeviceError: the target needs a GPU, and there is none.
        BuildError: the library cannot build this model; the message has its reasons.
        VerificationError: the engine does not compute in the requested precision, or not what the
            ONNX model computes; nothing is written.
        OutputError: the output cannot be written.
    """
    config = replace(config, output=through_links(config.output))
    module, gpu = check_ready(config)
    check = Check(config, possible=gpu is not None)
    progress("reading the model", 0)
    model = read_model_file(config.onnx)
    spec = model.spec
    batch = settings.batch_range(config, spec)
    version = str(module.__version__)
    faults = library.check_operators(config.target, version, model.operators)
    with library.captured_log(config.target) as lines:
        builder = module.Builder(library.logger(config.target))
        progress("parsing the graph", 0)
        network, _parser = graph.parse(module, builder, config.target, config.onnx, lines)
        wanted = config.expect_precision or spec.precision
        layers = parsed = read_network(network)
        # The network already has all types: check them before a build that takes minutes.
        check_network(
            parsed, wanted, kept_high=wanted == spec.precision and bool(KEPT & set(spec.provenance))
        )
        options = settings.configure(module, builder, network, config, batch)
        warnings, cache = _timing_cache(options, config, version, gpu, lines)
        started = time.perf_counter()
        plan = _compile(module, builder, network, options, config, lines, progress)
        seconds = time.perf_counter() - started
        if cache:
            warnings += timing_cache.save(options, cache)
        if config.target == "tensorrt":
            progress("reading the engine back", 1)
            layers = _read_back(module, plan, config, lines) or parsed
            warnings += check_engine(layers, wanted, parsed)
        warnings += library.complaints(lines, kind="warning")
    progress("writing", 1)
    sidecar = _describe(config, spec, version, gpu, batch, wanted, plan)
    sidecar.settings["precision_read_from"] = layers.source
    sidecar.settings["heavy_layers"] = _counts(layers)
    with staging_folder(config.output) as folder:
        staged = folder / config.output.name
        staged.write_bytes(memoryview(plan))
        write_sidecar(staged, sidecar)
        sidecar, remark = _certified(check, staged, sidecar, config, progress)
        _publish(staged, write_sidecar(staged, sidecar), config.output)
    slow = slower_than_fp16(wanted, gpu.compute_capability if gpu else None)
    warnings += [*slow, *faults, *remark, *check.notes]
    return BuildReport(config.output, sidecar, layers, seconds, tuple(warnings))


def check_ready(config: TensorRtConfig) -> tuple[Any, Gpu | None]:
    """Check that a build can start; return the library's module and the GPU of this machine.

    Raises:
        MissingDependencyError, DeviceError, OutputError: see :func:`build`.
    """
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    gpu = current_gpu()
    return _library(config, gpu), gpu


def check_network(layers: LayerReport, wanted: str, *, kept_high: bool) -> None:
    """Check that the network computes in the precision of the model, or in the requested one.

    Args:
        layers: layers of the network, which have known types.
        wanted: the expected precision.
        kept_high: whether the export kept some layers in FP32 on purpose.

    Raises:
        VerificationError: it computes in another precision.
    """
    if wanted == layers.precision or (kept_high and wanted in layers.heavy):
        return
    raise _wrong_precision(layers, wanted)


def check_engine(layers: LayerReport, wanted: str, parsed: LayerReport) -> list[str]:
    """Check that an engine computes in the precision of the network.

    Many matrix products are inside fused kernels, whose types are not reported, so the engine
    reports fewer layers than the network. It must not report more layers in a wider type.

    Args:
        layers: layers of the engine.
        wanted: the expected precision.
        parsed: layers of the network.

    Returns:
        warnings: quantised layers that the library computes in a wider type.

    Raises:
        VerificationError: no layer computes in the requested precision, or FP16 or BF16 layers
            became wider.
    """
    if layers.source == "network":  # the engine does not report its types
        return []
    grown = _wider(layers, wanted) - _wider(parsed, wanted)
    if wanted not in layers.heavy or (grown > 0 and wanted not in QUANTIZED):
        raise _wrong_precision(layers, wanted)
    if grown <= 0:
        return []
    return [f"{grown} layers are computed in a wider type than {wanted}: {_counts(layers)}"]


def _wider(layers: LayerReport, precision: str) -> int:
    return sum(count for name, count in layers.heavy.items() if name in wider(precision))


def _counts(layers: LayerReport) -> str:
    return ", ".join(f"{count} in {name}" for name, count in layers.heavy.items()) or "none"


def _wrong_precision(layers: LayerReport, wanted: str) -> VerificationError:
    return VerificationError(
        f"{wanted} was requested, but the {layers.source} computes in "
        f"{layers.precision or 'an unknown precision'}.",
        why=f"Its matrix products and convolutions are: {_counts(layers)}.",
        fix=f"Export the model again: eomt-deploy export CHECKPOINT --precision {wanted}",
    )


def _library(config: TensorRtConfig, gpu: Gpu | None) -> Any:
    """Import the library, after checking that it can build on this machine."""
    if config.target == "tensorrt" and gpu is None:
        raise DeviceError(
            "TensorRT needs a GPU to build an engine, and this machine has none.",
            why="It builds for the GPU of this machine. The NVIDIA driver is missing, or reports "
            "no GPU.",
            fix="Build on the machine that runs the engine, or use --target tensorrt-rtx, which "
            "needs no GPU.",
        )
    if config.target == "tensorrt-rtx" and config.strip_weights and gpu is None:
        # Observed with 1.7: it compiles a kernel for the refit on the GPU.
        raise DeviceError(
            "TensorRT-RTX needs a GPU to build an engine without weights, and this machine has "
            "none.",
            fix="Leave --strip-weights out, or build on a machine with a GPU.",
        )
    return library.load(config.target)


def _timing_cache(
    options: Any, config: TensorRtConfig, version: str, gpu: Gpu | None, lines: list[library.Line]
) -> tuple[list[str], Path | None]:
    """Attach the timing cache; TensorRT-RTX has none.

    Returns:
        warnings, and the cache file.
    """
    if config.target != "tensorrt" or gpu is None:
        return [], None
    path = config.timing_cache or timing_cache.default_file(version, gpu)
    if path is None:
        return ["the timing cache is not saved because there is no cache folder"], None
    return timing_cache.attach(options, path, lines), path


def _compile(
    module: Any,
    builder: Any,
    network: Any,
    options: Any,
    config: TensorRtConfig,
    lines: list[library.Line],
    progress: Progress,
) -> Any:
    """Build the engine plan and return it as a buffer of the library."""
    cancelled = threading.Event()
    monitor = make_monitor(module, progress, cancelled)
    options.progress_monitor = monitor
    plan = run_cancellable(lambda: builder.build_serialized_network(network, options), cancelled)
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        reasons = library.complaints(lines)
        memory = any(w in line.text for line in lines for w in ("OutOfMemory", "workspace limit"))
        raise BuildError(
            f"{library.NAMES[config.target]} {module.__version__} could not build {config.onnx}.",
            why="\n".join(reasons) or "It reported no reason.",
            fix="Increase --workspace, or reduce the maximum of --batch."
            if memory
            else "Export the model in another precision, or build for other GPUs.",
        )
    return plan


def _read_back(
    module: Any, plan: Any, config: TensorRtConfig, lines: list[library.Line]
) -> LayerReport | None:
    """Open the engine plan and read its inspector. Without a GPU this would crash the process."""
    runtime = module.Runtime(library.logger(config.target))
    if config.version_compatible:  # the engine plan contains a lean runtime, which is code
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(
            "The engine was built, but it cannot be opened.",
            why="\n".join(library.complaints(lines)),
            fix="Check with `nvidia-smi` whether another program uses the GPU's memory.",
        )
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return None
    return read_inspector(inspector.get_engine_information(module.LayerInformationFormat.JSON))


def _describe(
    config: TensorRtConfig,
    spec: ModelSpec,
    version: str,
    gpu: Gpu | None,
    batch: tuple[int, int, int],
    precision: str,
    plan: Any,
) -> Sidecar:
    return Sidecar(
        spec=spec,
        target=config.target,
        library_version=version,
        precision=precision,
        batch=batch,
        compute_capabilities=settings.capabilities(config, gpu, precision),
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        version_compatible=config.version_compatible,
        hardware_compatibility=config.hardware_compatibility,
        stripped=config.strip_weights,
        plan_bytes=plan.nbytes,
        plan_sha256=hashlib.sha256(memoryview(plan)).hexdigest(),
        onnx=config.onnx.name,
        onnx_sha256=onnx_sha256(config.onnx),
        settings=settings.describe(config),
    )


def _certified(
    check: Check, staged: Path, sidecar: Sidecar, config: TensorRtConfig, progress: Progress
) -> tuple[Sidecar, list[str]]:
    """Compare a new engine with its ONNX model, if this machine can run it.

    Returns:
        the sidecar with the certificate, and the reason if there is none.
    """
    if not config.check:
        return sidecar, []
    try:
        check_machine(sidecar, this_machine(config.target))
    except DeviceError as error:  # built for another GPU
        return sidecar, [
            f"The engine was not compared with its ONNX model: {error.what} Copy both to that "
            f"machine and run: eomt-deploy verify {config.output.name} --save"
        ]
    found = check.run(partial(TensorRtEngine, staged, built_from=config.onnx), progress)
    return replace(sidecar, certificate=found), []


def _publish(staged: Path, description: Path, output: Path) -> None:
    """Move a new engine and its sidecar to their places.

    The old engine is removed first and the new one is put in place last. So even after an
    interruption, an existing engine is complete and its sidecar describes it.
    """
    output.unlink(missing_ok=True)
    os.replace(description, sidecar_path(output))
    os.replace(staged, output)
