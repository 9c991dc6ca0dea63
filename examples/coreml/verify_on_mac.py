"""Certify a Core ML package on a Mac: compare it with its ONNX model on each kind of processor.

    pip install '.[coreml]'
    python examples/coreml/verify_on_mac.py m.mlpackage m.onnx image.jpg [more images]

It needs macOS 15 or later. It runs the package on the CPU, with the GPU and with the Neural Engine,
compares the logits with those of ONNX Runtime in FP32, lists the processor that Core ML prefers for
each operation, and writes `m.mlpackage.certificate.json`. Exit code: 0 if all results are right, 4
if one is not.

This program was written on Linux. Its comparison is tested there with the program of a package,
evaluated without Core ML; the calls of Core ML have not run.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eomt_deploy import __version__
from eomt_deploy.backends.certification import open_reference
from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.backends.verification import compare
from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import EomtDeployError, UsageError
from eomt_deploy.files import write_atomically
from eomt_deploy.model_file import CORE_ML_WEIGHTS, read_core_ml
from eomt_deploy.outputs import check_output
from eomt_deploy.precision import PRECISIONS, Precision, engine_limits
from eomt_deploy.sidecar import onnx_sha256, sha256

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""Members of coremltools.ComputeUnit."""
TIMED_CALLS = 20


class CoreMlEngine(Engine):
    """Runs a package with Core ML, on macOS only.

    Args:
        package: the ``.mlpackage`` folder.
        units: one of :data:`UNITS`.
    """

    backend = "coreml"

    def __init__(self, package: Path, units: str) -> None:
        super().__init__()
        import coremltools as ct

        self.path, self.device = package, units
        self.spec = read_core_ml(package).spec
        self._units = ct.ComputeUnit[units]
        self.model = ct.models.MLModel(str(package), compute_units=self._units)

    def _run(self, images: np.ndarray) -> Outputs:
        found = self.model.predict({INPUT: to_image(images)})
        first, second = (np.asarray(found[name], np.float32) for name in OUTPUTS)
        return first, second

    def preferred_devices(self) -> dict[str, dict[str, int]]:
        """The number of operations by the processor that Core ML prefers for them."""
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(
            path=self.model.get_compiled_model_path(), compute_units=self._units
        )
        operations = plan.model_structure.program.functions["main"].block.operations
        return count_devices(operations, plan.get_compute_device_usage_for_mlprogram_operation)


def to_image(images: np.ndarray) -> Image.Image:
    """The image of a batch of one, uint8 [1, H, W, 3] in RGB, as Core ML takes it."""
    return Image.fromarray(images[0])


def count_devices(
    operations: Iterable[Any], usage_of: Callable[[Any], Any]
) -> dict[str, dict[str, int]]:
    """The number of operations by processor and name; constants have no processor."""
    found: dict[str, Counter[str]] = {}
    for operation in operations:
        usage = usage_of(operation)
        if usage is not None:
            name = type(usage.preferred_compute_device).__name__
            device = name.removeprefix("ML").removesuffix("ComputeDevice")
            kind = operation.operator_name.split(".")[-1]  # "ios18.linear"
            found.setdefault(device, Counter())[kind] += 1
    return {device: dict(counts.most_common()) for device, counts in found.items()}


def limits_of(package: Path) -> Precision:
    """The limits for the differences: those of the precision, or wider ones for small weights."""
    spec, facts = read_core_ml(package)
    if facts.get("weights", "model") != "model":
        return PRECISIONS["int8"]
    return engine_limits(spec.precision)


def measure(
    engine: Engine, reference: Engine, images: list[Path], limits: Precision
) -> dict[str, Any]:
    """The differences between an engine and its reference, what exceeds the limits, and the median
    time of a call in milliseconds."""
    result = compare(engine, reference, images)
    batch = np.zeros((1, *engine.spec.image_size, 3), np.uint8)
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        engine.run(batch)
        seconds.append(time.perf_counter() - start)
    return {
        "differences": result.to_dict(),
        "problems": result.problems(limits),
        "milliseconds": round(1000 * float(np.median(seconds)), 3),
    }


def check_source(package: Path, onnx: Path) -> None:
    """Check that a package was built from this ONNX model, and that its weights are complete."""
    facts = read_core_ml(package).facts
    for found, stored, what in (
        (onnx_sha256(onnx), facts.get("onnx_sha256"), f"{onnx} is not the model of {package}"),
        (sha256(package / CORE_ML_WEIGHTS), facts.get("weights_sha256"), "The weights differ"),
    ):
        if found != stored:
            raise UsageError(
                f"{what}: its SHA-256 is {found[:12]}…, expected {str(stored)[:12]}….",
                fix="Copy both again, or build the package again.",
            )


def certificate(package: Path, onnx: Path, units: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The certificate as data for JSON."""
    facts = read_core_ml(package).facts
    return {
        "generator": f"eomt-deploy {__version__}",
        "package": package.name,
        "weights_sha256": facts.get("weights_sha256"),
        "onnx": onnx.name,
        "onnx_sha256": onnx_sha256(onnx),
        "limits": asdict(limits_of(package)),
        "machine": {
            "system": f"{platform.system()} {platform.mac_ver()[0]}".strip(),
            "chip": chip(),
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "units": units,
        "passed": bool(units) and not any(entry["problems"] for entry in units.values()),
    }


def chip() -> str:
    """Name of the processor."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.machine()


def main(package: Path, onnx: Path, images: list[Path]) -> int:
    """Certify a package; the exit code."""
    check_source(package, onnx)
    output = package.with_name(f"{package.name}.certificate.json")
    check_output(output, name="The certificate", inputs=images, overwrite=False)
    if platform.system() != "Darwin":
        print(
            f"Core ML runs on macOS only, and this is {platform.system()}: nothing was certified. "
            "Run this program on a Mac.",
            file=sys.stderr,
        )
        return 3
    found: dict[str, dict[str, Any]] = {}
    with open_reference(onnx) as reference:
        for units in UNITS:
            with CoreMlEngine(package, units) as engine:
                found[units] = measure(engine, reference, images, limits_of(package))
                found[units]["preferred_devices"] = engine.preferred_devices()
            print(units, json.dumps(found[units], indent=1))
    data = certificate(package, onnx, found)
    write_atomically(output, json.dumps(data, indent=1).encode())
    print(f"{'passed' if data['passed'] else 'FAILED'}; wrote {output}")
    return 0 if data["passed"] else 4


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
    except EomtDeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
