"""Run all checks and measurements that need a GPU, in less than ten minutes.

    python benchmarks/gpu_check.py          # writes benchmarks/results/<gpu>/gpu_check.json

A section whose packages are not installed is skipped, and the JSON has the reason. The sections:

* processing: time of our pre- and post-processing on this GPU and on the CPU, and their agreement
* onnxruntime: ONNX Runtime's CUDA provider: agreement with the CPU, latency of network and photo
* aotinductor: `.pt2` packages: agreement with PyTorch, compile time, latency of network and photo
* tests: `pytest -m gpu`: device layer, kernels, engines, CUDA graphs, threads, memory
* half-precision: error of FP16 and BF16 on this GPU, compared with the error of our emulation
* ladder: export, build and run every precision: error and label agreement with FP32 PyTorch
* speed: latency and memory of EoMT-S at 640 in every precision, interleaved with PyTorch FP16

The exit status is 1 if a section failed or a result is outside its limits.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


HERE = Path(__file__).parent
SCENES = HERE.parent / "examples" / "scenes"
TESTS_SECONDS = 100
PROCESSING_ROUNDS = 30
IMAGE_SIZES = {"1920x1080": (1080, 1920), "640x480": (480, 640), "3840x2160": (2160, 3840)}
MIN_AGREEMENT = {"fp32": 0.999, "fp16": 0.995, "bf16": 0.98, "int8": 0.95, "fp8": 0.95}
"""Minimum share of pixels with the label of FP32 PyTorch; the scenes have many small objects."""
KERNELS_AGREEMENT = 0.9999
MEMORY_GROWN = 1 << 20
NO_TESTS = 5
"""pytest's exit code if it collected no tests."""


class Skip(Exception):  # noqa: N818  it is not an error
    """A section cannot run on this machine."""


@dataclass
class Workspace:
    """Shared by the sections: the embedded model, and a folder for exports and engines."""

    folder: Path

    def small(self) -> tuple[Any, Any]:
        """Network and description of the embedded model."""
        from eomt_deploy.checkpoints import read_checkpoint
        from eomt_deploy.exporting import ExportConfig
        from eomt_deploy.exporting.describe import describe, find_source
        from eomt_deploy.exporting.network import build_network

        config = ExportConfig("eomt-tiny-scenes", self.folder / "x.onnx")
        source = find_source(config)
        checkpoint = read_checkpoint(source.location)
        spec = describe(config, source, checkpoint)
        return build_network(checkpoint, spec.image_size), spec

    def inputs(self, spec: Any) -> list[Any]:
        """Network inputs of the scenes in the repository."""
        from eomt_deploy.processing import Processor

        return [Processor(spec).preprocess(path)[0] for path in sorted(SCENES.glob("*.png"))]


def tests(_: Workspace) -> dict[str, Any]:
    """Run `pytest -m gpu` and count the results."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}"]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"],
            cwd=HERE.parent, capture_output=True, text=True, timeout=TESTS_SECONDS,
        )  # fmt: skip
        if done.returncode == NO_TESTS:
            raise Skip("there are no tests in this folder")
        if not report.exists():  # the process was killed, e.g. because a library crashed
            words = (done.stdout + done.stderr).strip()[-500:]
            raise RuntimeError(f"pytest ended with {done.returncode}: {words}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": {}}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        failure = next((x for x in case if x.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        if failure is not None:
            found["failed"].append([name, (failure.get("message") or "")[:300]])
        elif skipped is not None:
            why = re.sub(r"\S+/", "", skipped.get("message") or "")
            found["skipped"][why] = found["skipped"].get(why, 0) + 1
        else:
            found["passed"] += 1
    return found


def processing(_: Workspace) -> dict[str, Any]:
    """Time pre- and post-processing: logits on the GPU to a result on the host, and on the CPU."""
    from processing_times import processing_times

    from eomt_deploy.cuda import open_device

    return processing_times(open_device(), IMAGE_SIZES, PROCESSING_ROUNDS)


def half_precision(workspace: Workspace) -> dict[str, Any]:
    """Compare real half-precision arithmetic of this GPU with our emulation on the CPU."""
    import numpy as np
    import torch

    from eomt_deploy.network.folds import fold

    if not torch.cuda.is_available():
        raise Skip("this PyTorch cannot use a GPU")
    network, spec = workspace.small()
    network = fold(network)
    images = workspace.inputs(spec)
    with torch.inference_mode():
        wanted = [[t.numpy() for t in network(torch.from_numpy(x))] for x in images]
    emulated = _emulated(network, spec, images)
    found = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = copy.deepcopy(network).to("cuda", dtype)
        with torch.inference_mode():
            have = [
                [t.float().cpu().numpy() for t in half(torch.from_numpy(x).cuda())] for x in images
            ]
        row = {"gpu_error": _error(have, wanted)}
        if emulated:
            row["emulated_error"] = _error(emulated[name], wanted)
        row["finite"] = bool(all(np.isfinite(t).all() for pair in have for t in pair))
        found[name] = row
    return found


def _emulated(network: Any, spec: Any, images: list[Any]) -> dict[str, Any]:
    try:
        from eomt_deploy.backends.emulation.engine import EmulatedEngine
        from eomt_deploy.exporting import graph
        from eomt_deploy.exporting.conversion import describe
        from eomt_deploy.exporting.lowering import Lowering, lower

        model = describe(graph.trace(network, spec), spec)
    except ImportError:
        return {}
    found = {}
    for name in ("fp16", "bf16"):
        engine = EmulatedEngine(lower(model, Lowering(name)))
        found[name] = [engine.run(x) for x in images]
    return found


def _error(have: Any, want: Any) -> float:
    """RMS error of the mask logits, divided by their RMS."""
    import numpy as np

    squares = [
        (np.square(h[1] - w[1]).sum(), np.square(w[1]).sum())
        for h, w in zip(have, want, strict=True)
    ]
    return float(np.sqrt(sum(s[0] for s in squares) / sum(s[1] for s in squares)))


def targets() -> list[str]:
    """Build targets that can build and run on this GPU: TensorRT, TensorRT-RTX."""
    from eomt_deploy.backends.tensorrt.config import RTX_CAPABILITIES
    from eomt_deploy.backends.tensorrt.library import installed
    from eomt_deploy.devices import current_gpu

    gpu = current_gpu()
    found = [t for t in ("tensorrt", "tensorrt-rtx") if installed(t)]
    if gpu and gpu.compute_capability not in RTX_CAPABILITIES:
        found = [t for t in found if t != "tensorrt-rtx"]
    if not found:
        raise Skip("neither TensorRT nor TensorRT-RTX can build for this GPU")
    return found


def ladder(workspace: Workspace) -> dict[str, Any]:
    """Export, build and run the embedded model in every precision; compare the label maps."""
    from eomt_deploy.backends.tensorrt.build import build
    from eomt_deploy.backends.tensorrt.config import TensorRtConfig
    from eomt_deploy.evaluation.truth import unlabelled
    from eomt_deploy.exporting import ExportConfig, export
    from eomt_deploy.exporting.config import PRECISIONS, QUANTIZED
    from eomt_deploy.exporting.reference import NetworkEngine
    from eomt_deploy.exporting.verdict import Judge
    from eomt_deploy.segmenter import Segmenter

    network, spec = workspace.small()
    samples = unlabelled(sorted(SCENES.glob("*.png")))
    judge = Judge(NetworkEngine(network, spec), samples, labelled=False)
    found: dict[str, Any] = {}
    for target in targets():
        for precision in PRECISIONS:
            onnx, engine = (
                workspace.folder / f"{precision}.onnx",
                workspace.folder / f"{precision}.{target}",
            )
            engine = engine.with_name(engine.name + ".engine")
            try:
                if not onnx.exists():
                    calibrate = SCENES if precision in QUANTIZED else None
                    export(
                        ExportConfig(
                            "eomt-tiny-scenes", onnx, precision=precision, calibrate=calibrate
                        )
                    )
                # The certificate needs onnx-ir, which a bare machine may lack.
                check = find_spec("onnx_ir") is not None
                report = build(TensorRtConfig(onnx, engine, target=target, check=check))  # type: ignore[arg-type]
                with Segmenter(engine) as segmenter:
                    judged = judge(segmenter.engine)
                    same = [_same_pixels(segmenter, sample.image()) for sample in samples]
                found[f"{target} {precision}"] = {
                    "error": judged.error,
                    "label_agreement": judged.agreement,
                    "kernels_equal_cpu": min(same),
                    "heavy_layers": dict(report.layers.heavy),
                    "read_from": report.layers.source,
                    "build_seconds": round(report.seconds, 1),
                    "certificate_error": report.certificate and report.certificate.relative_error,
                }
            except Exception as error:
                found[f"{target} {precision}"] = {"failed": str(error)[:800]}
    return found


def _same_pixels(segmenter: Any, image: Any) -> float:
    """Share of pixels for which our kernels and the CPU compute the same label."""
    wanted = segmenter.processor.postprocess(*segmenter.logits(image))
    return float((segmenter.predict(image).segment_map == wanted.segment_map).mean())


def speed(workspace: Workspace) -> dict[str, Any]:
    """Time engines and PyTorch FP16, interleaved: EoMT-S at 640, batch 1, random weights."""
    from gpu_speed import engine_speed

    return engine_speed(workspace.folder, targets())


def onnxruntime(workspace: Workspace) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider with everything on the GPU, and with copies."""
    from gpu_engines import onnxruntime_gpu
    from onnxruntime import get_available_providers

    from eomt_deploy.backends.onnxruntime.gpu import OnnxRuntimeGpuEngine

    if "CUDAExecutionProvider" not in get_available_providers():
        raise Skip("onnxruntime-gpu is not installed")
    return onnxruntime_gpu(workspace.folder, OnnxRuntimeGpuEngine)


def aotinductor(workspace: Workspace) -> dict[str, Any]:
    """PyTorch's ``.pt2`` packages with everything on the GPU, and with copies."""
    import torch
    from gpu_engines import aotinductor_gpu

    from eomt_deploy.backends.aotinductor.open import open_aotinductor

    if not torch.cuda.is_available():
        raise Skip("PyTorch does not find the GPU")
    return aotinductor_gpu(workspace.folder, open_aotinductor)


SECTIONS: dict[str, Callable[[Workspace], dict[str, Any]]] = {
    "processing": processing,
    "onnxruntime": onnxruntime,
    "aotinductor": aotinductor,
    "tests": tests,
    "half-precision": half_precision,
    "ladder": ladder,
    "speed": speed,
}


def run_sections(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                yield name, SECTIONS[name](workspace)
            except Skip as reason:
                yield name, {"skipped": str(reason)}
            except ImportError as error:
                yield name, {"skipped": f"{error.name} is not installed"}
            except Exception as error:  # the other sections must still run
                trace = traceback.format_exc().strip().splitlines()[-6:]
                yield name, {"failed": f"{type(error).__name__}: {error}", "trace": trace}


def problems(name: str, found: Any) -> list[str]:
    """List the failures of a section, and its results outside the limits."""
    lines = []
    if not isinstance(found, dict):
        return lines
    for key, value in found.items():
        where = f"{name}: {key}"
        if key == "failed":
            lines += [f"{where}: {x}" for x in (value if isinstance(value, list) else [value])]
        elif (
            (key == "finite" and not value)
            or (key == "inputs_equal" and not value)
            or (key == "kernels_equal_cpu" and value < KERNELS_AGREEMENT)
            or (key == "label_agreement" and value < MIN_AGREEMENT[name.rsplit(" ", 1)[-1]])
            or (key == "grown_bytes" and value > MEMORY_GROWN)
        ):
            lines.append(f"{where} is outside its limits: {value}")
        else:
            lines += problems(where, value)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all checks and measurements that need a GPU.")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="Sections to run (default: all).",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/<gpu>/gpu_check.json).",
    )
    options = parser.parse_args()
    from eomt_deploy import devices
    from eomt_deploy.benchmarking.machine.environment import environment

    gpu = devices.current_gpu()
    if gpu is None:
        sys.exit("error: the NVIDIA driver reports no GPU, but all checks need one")
    result = {"schema": 1, "environment": environment(), "gpu": vars(gpu)}
    folder = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-").lower()
    target = options.output or HERE / "results" / folder / "gpu_check.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, found in run_sections(options.sections):
        result[name] = found
        print(json.dumps({name: found}, indent=1), flush=True)
        # After each section, because a time limit may stop the process.
        target.write_text(json.dumps(result, indent=1) + "\n")
    failed = [line for name in options.sections for line in problems(name, result[name])]
    sys.exit("failed:\n" + "\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
