"""The partitioners of ExecuTorch: what runs the network on the device.

A partitioner is a row in :data:`DELEGATES`. XNNPACK is the only one whose programs run here: the
Python package of ExecuTorch has CoreML's runtime on macOS only, and QNN needs a Qualcomm chip.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eomt_deploy.errors import MissingDependencyError, UsageError

CASTS = ["dim_order_ops._to_dim_order_copy.default", "aten._to_copy.default"]
"""Conversions of types. CoreML has no uint8 inputs, so the cast of the images stays outside."""


@dataclass(frozen=True)
class Delegate:
    """A partitioner and what its programs need.

    Attributes:
        title: display name.
        backend: name of the backend that the runtime must have.
        make: function (chip or None) -> the partitioner.
        precision: what the delegate computes in.
        rewritten: whether the network is written in the operators that XNNPACK has.
    """

    title: str
    backend: str
    make: Callable[[str | None], Any]
    precision: str = "fp32"
    rewritten: bool = False


def _xnnpack(_: str | None) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def _coreml(_: str | None) -> Any:
    try:
        import coremltools
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    except ImportError as error:
        raise MissingDependencyError(
            "CoreML's compiler is not available on this machine.",
            why=f"ExecuTorch has it for macOS and for Linux on x86-64 ({error}).",
            fix="Build on one of them: pip install 'eomt-deploy[executorch]'; or use "
            "--partitioner xnnpack.",
        ) from error
    specs = CoreMLBackend.generate_compile_specs(compute_precision=coremltools.precision.FLOAT32)
    return CoreMLPartitioner(compile_specs=specs, skip_ops_for_coreml_delegation=CASTS)


def _qnn(soc: str | None) -> Any:
    # Without this variable, ExecuTorch would download the SDK.
    if not Path(os.environ.get("QNN_SDK_ROOT") or "missing", "lib").is_dir():
        raise MissingDependencyError(
            "Qualcomm's AI Engine Direct SDK (QNN) was not found.",
            why="The environment variable QNN_SDK_ROOT must be the folder of the SDK.",
            fix="Install the SDK and set QNN_SDK_ROOT as ExecuTorch's Qualcomm page describes; or "
            "use --partitioner xnnpack.",
        )
    try:
        from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
        from executorch.backends.qualcomm.utils.utils import (
            generate_htp_compiler_spec,
            generate_qnn_executorch_compiler_spec,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "ExecuTorch's binding to QNN is not available on this machine.",
            why=f"ExecuTorch's package has it for Linux on x86-64 ({error}).",
            fix="Build there, or use --partitioner xnnpack.",
        ) from error
    if soc not in QcomChipset.__members__:
        raise UsageError(
            f"--soc {soc!r} is unknown.", fix=f"Known: {', '.join(QcomChipset.__members__)}."
        )
    options = generate_htp_compiler_spec(use_fp16=True)  # the chip has no FP32
    return QnnPartitioner(generate_qnn_executorch_compiler_spec(QcomChipset[soc], options))


DELEGATES = {
    "xnnpack": Delegate("XNNPACK", "XnnpackBackend", _xnnpack, rewritten=True),
    "coreml": Delegate("CoreML", "CoreMLBackend", _coreml),
    "qnn": Delegate("QNN", "QnnBackend", _qnn, precision="fp16"),
}
