"""Conversion of a TensorRtConfig to the library's ``IBuilderConfig``."""

from __future__ import annotations

from typing import Any

from eomt_deploy.backends.tensorrt.config import DEFAULT_BATCH, TensorRtConfig
from eomt_deploy.devices import Gpu
from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.sidecar import AND_LATER
from eomt_deploy.spec import ModelSpec


def batch_range(config: TensorRtConfig, spec: ModelSpec) -> tuple[int, int, int]:
    """(minimum, optimal, maximum) batch size of the engine.

    Raises:
        UsageError: a range was requested, but the batch of the model is fixed.
    """
    if spec.batch is None:
        return config.batch or DEFAULT_BATCH
    if config.batch is not None:
        raise UsageError(
            f"--batch does not apply: the batch size of {config.onnx} is fixed to {spec.batch}.",
            fix="Leave --batch out, or export the checkpoint again without --batch.",
        )
    return spec.batch, spec.batch, spec.batch


def configure(
    module: Any, builder: Any, network: Any, config: TensorRtConfig, batch: tuple[int, int, int]
) -> Any:
    """Create an ``IBuilderConfig`` with the requested settings.

    Raises:
        MissingDependencyError: this version of the library does not know a compute capability.
    """
    options = builder.create_builder_config()
    # Needed for the inspector to report types, not only names. It does not slow the engine down.
    options.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if config.workspace is not None:
        options.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, config.workspace)
    if not config.tf32:  # on by default in the library
        options.clear_flag(module.BuilderFlag.TF32)
    if config.strip_weights:
        options.set_flag(module.BuilderFlag.STRIP_PLAN)
    if config.version_compatible:
        options.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if config.optimization_level is not None:
        options.builder_optimization_level = config.optimization_level
    if config.hardware_compatibility != "none":
        level = getattr(
            module.HardwareCompatibilityLevel, config.hardware_compatibility.upper(), None
        )
        if level is None:
            raise MissingDependencyError(
                f"TensorRT {module.__version__} does not know --hardware-compatible "
                f"{config.hardware_compatibility.replace('_', '-')}.",
                fix="Leave it out, or install a newer version of TensorRT.",
            )
        options.hardware_compatibility_level = level
    if config.compute_capabilities:
        options.num_compute_capabilities = len(config.compute_capabilities)
        for index, capability in enumerate(config.compute_capabilities):
            options.set_compute_capability(_capability(module, capability), index)
    _add_batches(builder, network, options, batch)
    return options


def _capability(module: Any, capability: str) -> Any:
    value = getattr(module.ComputeCapability, "SM" + capability.replace(".", ""), None)
    if value is None:
        raise MissingDependencyError(
            f"TensorRT-RTX {module.__version__} cannot build for compute capability {capability}.",
            fix="pip install --upgrade 'eomt-deploy[tensorrt-rtx]'",
        )
    return value


def _add_batches(builder: Any, network: Any, options: Any, batch: tuple[int, int, int]) -> None:
    """Add an optimisation profile if the batch is dynamic; a fixed batch needs none."""
    profile = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        first, *rest = tuple(tensor.shape)
        if first == -1:
            profile = profile or builder.create_optimization_profile()
            profile.set_shape(tensor.name, *((size, *rest) for size in batch))
    if profile is not None:
        options.add_optimization_profile(profile)


def capabilities(config: TensorRtConfig, gpu: Gpu | None, precision: str) -> tuple[str, ...]:
    """Compute capabilities that the engine is built for, in the format of the sidecar."""
    if config.target == "tensorrt-rtx":
        # By default it builds for Ampere and all later GPUs, for FP8 from Ada on.
        every = PRECISIONS[precision].compute_capability + AND_LATER
        return config.compute_capabilities or (every,)
    if config.hardware_compatibility == "ampere_plus":
        return ("8.0" + AND_LATER,)
    return (gpu.compute_capability,) if gpu else ()


def describe(config: TensorRtConfig) -> dict[str, str]:
    """Settings of the build that are not in other fields of the sidecar."""
    result = {"tf32": "yes" if config.tf32 else "no"}
    if config.workspace is not None:
        result["workspace_bytes"] = str(config.workspace)
    if config.optimization_level is not None:
        result["optimization_level"] = str(config.optimization_level)
    return result
