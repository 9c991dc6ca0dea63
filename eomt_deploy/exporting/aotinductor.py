"""Export to an AOTInductor package (``.pt2``), which PyTorch compiles and runs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eomt_deploy.backends.aotinductor.engine import check_compiler, save_package
from eomt_deploy.backends.aotinductor.open import open_aotinductor
from eomt_deploy.backends.verification import Verification, compare
from eomt_deploy.errors import DeviceError, VerificationError
from eomt_deploy.exporting import verify
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.exporting.fp8 import check_fp8, use_fp8
from eomt_deploy.exporting.quantization import QuantizedLayer
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.exporting.verdict import Judge, Verdict, whole
from eomt_deploy.files import staging_folder
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.folds import fold
from eomt_deploy.network.masked import choose_attention
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.spec import ModelSpec

OTHER_FORMATS = (
    "Write an .onnx file, whose export finds the layers that need FP32; or use --precision bf16 or "
    "fp32."
)


def choose_device(wanted: str | None) -> str:
    """The device to compile a package for. Default: the GPU, if PyTorch finds one.

    Raises:
        DeviceError: ``wanted`` is a GPU, but PyTorch finds none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise DeviceError(
            f"PyTorch {torch.__version__} did not find a GPU to compile for.",
            fix="Compile on a machine with a GPU, or pass --device cpu.",
        )
    return wanted or ("cuda" if found else "cpu")


@dataclass(frozen=True)
class Package:
    """An exported package.

    Attributes:
        spec: its description.
        verification: its agreement with the checkpoint.
        compiled: the device, and how long the compilation took.
        verdict: the accuracy loss of FP8.
    """

    spec: ModelSpec
    verification: Verification
    compiled: str
    verdict: Verdict | None = None


def export_package(
    config: ExportConfig,
    reference: EoMT,
    spec: ModelSpec,
    images: Sequence[Path],
    progress: Callable[[str], None],
    *,
    quantize: Callable[[EoMT], Mapping[str, QuantizedLayer]] | None = None,
    judge: Judge | None = None,
) -> Package:
    """Compile a package, verify it on images, and write the output only if it agrees.

    Args:
        config: options of the export.
        reference: network of the checkpoint.
        spec: description of the model.
        images: images for the verification.
        progress: called with a message for each step.
        quantize: returns the layers to compute in FP8, from the folded network; None: no layer.
        judge: measures the accuracy loss of FP8.

    Raises:
        DeviceError: the device is not available, or has no FP8.
        MissingDependencyError: there is no C++ compiler.
        VerificationError: the package does not agree with the checkpoint.
    """
    device = choose_device(config.device)
    if config.precision == "fp8":
        check_fp8(device)
    check_compiler()
    network = fold(copy.deepcopy(reference))
    layers = quantize(network) if quantize else {}
    choose_attention(network.backbone, "sdpa")
    network = network.to(device, getattr(torch, PRECISIONS[config.precision].dtype))
    use_fp8(network, layers)
    spec = replace(spec, batch=config.batch or 1)
    progress(f"compiling for {device}")
    with staging_folder(config.output) as folder:
        path = folder / config.output.name
        began = time.monotonic()
        save_package(network, spec, path, batch=config.batch or 1, device=device)
        seconds = time.monotonic() - began
        del network  # the GPU may have no room for another one
        if device == "cuda":
            torch.cuda.empty_cache()
        progress("opening the package")
        with open_aotinductor(path) as engine:
            try:
                verdict = whole(judge.unit, judge(engine)) if judge else None
                result = compare(engine, NetworkEngine(reference, spec), images, progress)
                verify.check(result, config.precision)
            except VerificationError as error:
                raise VerificationError(error.what, why=error.why, fix=OTHER_FORMATS) from error
        path.replace(config.output)
    return Package(spec, result, f"for {device} in {seconds:.0f} s", verdict)
