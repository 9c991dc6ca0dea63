"""The partitioners of ExecuTorch: what runs the network on the device.

Only XNNPACK was run by us. CoreML and QNN need macOS or Qualcomm's SDK to build and the device to
run; without them, there is one error that names what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eomt_deploy.errors import MissingDependencyError, UsageError


@dataclass(frozen=True)
class Delegate:
    """What a partitioner's programs need.

    Attributes:
        title: display name.
        backend: name of the backend that the runtime must have.
        rewritten: whether the network is written in the operators that XNNPACK has.
    """

    title: str
    backend: str
    rewritten: bool = False


DELEGATES = {
    "xnnpack": Delegate("XNNPACK", "XnnpackBackend", rewritten=True),
    "coreml": Delegate("CoreML", "CoreMLBackend"),
    "qnn": Delegate("QNN", "QnnBackend"),
}


def make_partitioner(name: str, soc: str | None) -> Any:
    """The partitioner of ``name``.

    Args:
        name: key of :data:`DELEGATES`.
        soc: Qualcomm chip, for ``qnn``.

    Raises:
        MissingDependencyError: its compiler is not installed on this machine.
        UsageError: the chip is unknown.
    """
    make = {"xnnpack": _xnnpack, "coreml": _coreml}.get(name)
    return make() if make else _qnn(soc or "")


def _xnnpack() -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def _coreml() -> Any:
    try:
        # The partitioner itself is importable everywhere; this is the library that compiles.
        import coremltools.libmodelpackage  # noqa: F401
        from executorch.backends.apple.coreml import executorchcoreml  # noqa: F401
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    except ImportError as error:
        raise MissingDependencyError(
            "The CoreML partitioner is not available on this machine.",
            why=f"ExecuTorch compiles for CoreML with coremltools' libraries and executorchcoreml, "
            f"which its package has on macOS only ({error}).",
            fix="Build on a Mac: pip install 'eomt-deploy[executorch]'; or use --partitioner "
            "xnnpack.",
        ) from error
    return CoreMLPartitioner()


def _qnn(soc: str) -> Any:
    try:
        # The binding to Qualcomm's compiler; the partitioner's module does not need it.
        from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
        from executorch.backends.qualcomm.python import PyQnnManagerAdaptor  # noqa: F401
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
        from executorch.backends.qualcomm.utils.utils import (
            generate_htp_compiler_spec,
            generate_qnn_executorch_compiler_spec,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "The QNN partitioner is not available on this machine.",
            why="It needs Qualcomm's AI Engine Direct SDK (QNN) and ExecuTorch's binding to it, "
            f"PyQnnManagerAdaptor ({error}).",
            fix="Install the SDK and set QNN_SDK_ROOT as ExecuTorch's Qualcomm page describes; or "
            "use --partitioner xnnpack.",
        ) from error
    if soc not in QcomChipset.__members__:
        raise UsageError(
            f"--soc {soc!r} is unknown.", fix=f"Known: {', '.join(QcomChipset.__members__)}."
        )
    options = generate_htp_compiler_spec(use_fp16=True)
    specs = generate_qnn_executorch_compiler_spec(QcomChipset[soc], options)
    return QnnPartitioner(specs)
