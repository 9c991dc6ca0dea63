"""Complete predictions on the CPU compared with transformers, and their parts.

    python benchmarks/cpu_end_to_end.py [--sections post hard network photo stream] [--models s b]
        [--runs 3] [--rounds 7] [--work build/cpu_end_to_end] [--json FILE] [--plot FILE.png]

Needs the `dev` extra. The rows of a case run in interleaved rounds, so that other load affects all
rows equally; a row with too much noise is INVALID and gives no conclusion. Weights are random; this
does not change the speed of the network. Post-processing gets synthetic outputs with one certain
query for each pixel (`post`), with overlapping queries, or with queries that are everywhere
(`hard`). Models are created in the first run and kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from cpu_cases import (
    ALONE,
    BASE,
    IMAGE_SIZES,
    OURS,
    SHAPES,
    STREAMED,
    Theirs,
    add_shares_of_peak,
    agreement,
    console,
    extra_memory,
    kilobytes,
    plot,
    show,
    time_jobs,
)  # fmt: skip
from PIL import Image
from synthetic import HARD, KINDS, MODELS, QUERIES, made_up_outputs, spec_of
from torch.utils.flop_counter import FlopCounterMode

from eomt_deploy import Segmenter
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.openvino.build import build_openvino
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.benchmarking.machine import roofline
from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.processing import Processor
from eomt_deploy.sources import built_in_images


def post_jobs(task: str, size: tuple[int, int], kind: str = "") -> dict[str, Callable[[], Any]]:
    """Post-processing of transformers and ours, with the same outputs; ``kind``: from KINDS."""
    queries, make = KINDS[kind]
    spec = spec_of(task, queries)
    ours, theirs = Processor(spec), Theirs(spec)
    image = np.zeros((*size, 3), np.uint8)
    _, geometry = ours.preprocess(image)
    classes, masks = make(spec, geometry)
    offsets = theirs.processor(images=image, return_tensors="pt").get("patch_offsets")
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(masks),
        class_queries_logits=torch.from_numpy(classes),
        patch_offsets=offsets,
    )
    score = {"score_threshold": 0.5} if task == "instance" else {}

    def mine() -> Any:
        result = ours.postprocess(classes, masks, geometry, **score)
        _ = result.class_map, result.segment_map  # as int32, which happens on first use
        return result

    def his() -> Any:
        with torch.inference_mode():
            return theirs.postprocess(outputs, size)

    return {BASE: his, OURS: mine}


def fresh_memory(task: str, size_name: str, row: str) -> int:
    """:func:`extra_memory` in a new process, which has no memory to reuse."""
    command = [sys.executable, __file__, "--memory", task, size_name, row]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # returns freed memory
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout.splitlines()[-1])


def section_hard(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Time post-processing of outputs that are harder than those of trained models."""
    found = []
    for task, kind in HARD:
        jobs = post_jobs(task, IMAGE_SIZES["1920x1080"], kind)
        rows = time_jobs(jobs, options.rounds, seed)
        same = agreement(task, jobs[OURS](), jobs[BASE]())
        name = f"{task} 1920x1080{kind}"
        case = {"section": "post", "case": name, "rows": rows, "agreement": same}
        found.append(case)
        show(case)
    return found


def section_post(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Time post-processing alone, with the same outputs."""
    found = []
    for size_name, size in IMAGE_SIZES.items():
        for task in MODELS:
            jobs = post_jobs(task, size)
            if size_name == ALONE:
                del jobs[BASE]
            case = {
                "section": "post", "case": f"{task} {size_name}",
                "extra_bytes": {row: fresh_memory(task, size_name, row) for row in jobs},
                "rows": time_jobs(jobs, options.rounds, seed),
            }  # fmt: skip
            if BASE in jobs:
                case["agreement"] = agreement(task, jobs[OURS](), jobs[BASE]())
            found.append(case)
            show(case)
    return found


PEAKS: dict[str, float] = {}
"""Measured peak in FLOP/s by precision, the maximum of all runs."""


class Models:
    """One network with random weights, for transformers and for our backends."""

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        width, depth, heads = SHAPES[name]
        self.folder = work / f"{name}-transformers"
        if not (self.folder / "config.json").is_file():
            torch.manual_seed(0)
            config = transformers.EomtConfig(
                hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                num_blocks=3, num_queries=QUERIES, image_size=640, patch_size=16,
                num_register_tokens=4, id2label={i: str(i) for i in range(133)},
            )  # fmt: skip
            model = transformers.EomtForUniversalSegmentation(config)
            model.attn_mask_probs.zero_()  # disables masked attention, which takes twice as long
            model.save_pretrained(self.folder)
        self.fp32 = self._export(work, "fp32")
        self.int8 = self._export(work, "int8")
        self.int8_bf16 = self._build(self.int8, "bf16")
        self.bf16 = self._build(self.fp32, "bf16")

    def _export(self, work: Path, precision: str) -> Path:
        path = work / f"{self.name}.{precision}.onnx"
        if not path.is_file():
            console.print(f"exporting {path}")
            calibrate = built_in_images()[0].parent if precision == "int8" else None
            export(
                ExportConfig(
                    str(self.folder), path, task="panoptic", classes=Path("coco_panoptic"),
                    precision=precision, calibrate=calibrate,
                )
            )  # fmt: skip
        return path

    def _build(self, model: Path, arithmetic: str) -> Path:
        path = model.with_suffix(f".{arithmetic}.xml")
        if not path.is_file():
            build_openvino(OpenVinoConfig(model, path, arithmetic=arithmetic, check=False))
        return path

    def rows(self) -> dict[str, Segmenter]:
        """Our segmenters for this network, by row."""
        return {
            "onnxruntime fp32": Segmenter(self.fp32, backend="onnxruntime"),
            "onnxruntime int8": Segmenter(self.int8, backend="onnxruntime"),
            "openvino f32": Segmenter(self.fp32, backend="openvino"),
            "openvino bf16": Segmenter(self.bf16),
            "openvino int8": Segmenter(self.int8, backend="openvino"),
            "openvino int8 + bf16": Segmenter(self.int8_bf16),
        }

    def theirs(self) -> Any:
        model = transformers.EomtForUniversalSegmentation.from_pretrained(self.folder)
        return model.float().eval()


def section_network(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Time the network alone, batch size 1, with its share of the processor's measured peak."""
    found = []
    for precision, peak in roofline.probe("cpu", ("fp32", "bf16", "int8"))[0].items():
        PEAKS[precision] = max(PEAKS.get(precision, 0.0), peak.tflops * 1e12)
    for name in options.models:
        models = Models(name, options.work)
        model, rows = models.theirs(), models.rows()
        pixels = torch.rand(1, 3, 640, 640)
        images = np.random.default_rng(0).integers(0, 256, (1, 640, 640, 3), np.uint8)
        flops = count_flops(models.folder, pixels)

        def his(model: Any = model, pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode():
                model(pixel_values=pixels)

        jobs: dict[str, Callable[[], Any]] = {BASE: his}
        jobs |= {row: partial(s.engine.run, images) for row, s in rows.items()}
        case = {
            "section": "network", "case": f"{name.upper()} 640",
            "gflop": {"linear layers": flops[0] / 1e9, "all the rest": flops[1] / 1e9},
            "peaks_tflops": {precision: peak / 1e12 for precision, peak in PEAKS.items()},
            "rows": time_jobs(jobs, options.rounds, seed),
        }  # fmt: skip
        add_shares_of_peak(case["rows"], flops, PEAKS)
        found.append(case)
        show(case)
        for segmenter in rows.values():
            segmenter.close()
    return found


def count_flops(folder: Path, pixels: torch.Tensor) -> tuple[int, int]:
    """FLOP of linear layers and of all other layers, two per multiply-add.

    Attention runs in eager mode, because PyTorch does not count fused attention here.
    """
    load = transformers.EomtForUniversalSegmentation.from_pretrained
    model = load(folder, attn_implementation="eager").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixel_values=pixels)
    counts = counter.get_flop_counts()["Global"]
    linear = sum(n for operator, n in counts.items() if str(operator) in ("aten.addmm", "aten.mm"))
    return linear, int(counter.get_total_flops()) - linear


class MadeUp(Engine):
    """Engine that runs another engine and returns synthetic outputs."""

    def __init__(self, engine: Engine, outputs: Any) -> None:
        super().__init__()
        self.engine, self.outputs, self.spec = engine, outputs, engine.spec
        self.backend, self.device = engine.backend, engine.device

    def _run(self, images: Any) -> Any:
        self.engine.run(images)
        return self.outputs


def section_image(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Time predictions from a JPEG file to the panoptic result."""
    found = []
    for name in options.models:
        models = Models(name, options.work)
        path = image_file(options.work)
        rows, theirs = models.rows(), Theirs(spec_of("panoptic"))
        outputs = outputs_for(rows["openvino f32"], path)
        replaced = SimpleNamespace(
            class_queries_logits=torch.from_numpy(outputs[0]),
            masks_queries_logits=torch.from_numpy(outputs[1]), patch_offsets=None,
        )  # fmt: skip

        his = partial(predict_theirs, models.theirs(), theirs, replaced, path)
        ours = {row: Segmenter(MadeUp(s.engine, outputs)) for row, s in rows.items()}
        jobs: dict[str, Callable[[], Any]] = {BASE: his}
        jobs |= {row: partial(segmenter.predict, path) for row, segmenter in ours.items()}
        case = {
            "section": "photo", "case": f"{name.upper()} 1920x1080 JPEG",
            "rows": time_jobs(jobs, options.rounds, seed),
        }  # fmt: skip
        found.append(case)
        show(case)
        for segmenter in ours.values():
            segmenter.close()
    return found


def predict_theirs(model: Any, theirs: Theirs, outputs: Any, path: Path) -> Any:
    """Predict an image with transformers; after the network, use synthetic outputs."""
    image = Image.open(path).convert("RGB")
    inputs = theirs.processor(images=image, return_tensors="pt")
    with torch.inference_mode():
        model(pixel_values=inputs["pixel_values"])
        return theirs.postprocess(outputs, image.size[::-1])


def image_file(work: Path) -> Path:
    """An image of the package, enlarged to 1920x1080."""
    path = work / "photo.jpg"
    if not path.is_file():
        image = Image.open(built_in_images()[0]).convert("RGB")
        image.resize((1920, 1080), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def outputs_for(segmenter: Segmenter, path: Path) -> Any:
    _, geometry = segmenter.processor.preprocess(path)
    return made_up_outputs(segmenter.spec, geometry)


def section_stream(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Predict 200 images as a stream: other work must overlap with the network.

    Memory must not grow.
    """
    models = Models(options.models[0], options.work)
    path = image_file(options.work)
    real = Segmenter(models.int8_bf16)
    segmenter = Segmenter(MadeUp(real.engine, outputs_for(real, path)))
    images, geometry = segmenter.processor.preprocess(path)
    classes, masks = segmenter.engine.run(images)

    def rest() -> None:
        segmenter.processor.preprocess(path)
        segmenter.processor.postprocess(classes, masks, geometry)

    parts = time_jobs({"network": partial(real.engine.run, images), "rest": rest}, 15, seed)
    slower = max(row["p50_ms"] for row in parts.values())
    memory, start = [], time.perf_counter()
    for index, _ in enumerate(segmenter.stream([path] * STREAMED)):
        if index in (STREAMED // 4, STREAMED - 1):
            memory.append(kilobytes("VmRSS") / 1024)
    per_image = 1000 * (time.perf_counter() - start) / STREAMED
    again = time_jobs({"network": partial(real.engine.run, images)}, 15, seed)
    slower = (slower + max(parts["rest"]["p50_ms"], again["network"]["p50_ms"])) / 2
    case = {
        "section": "stream", "case": f"{STREAMED} photos, {models.name.upper()} int8 + bf16",
        "rows": parts, "ms_per_image": per_image, "of_the_slower": slower / per_image,
        "megabytes": memory,
    }  # fmt: skip
    show(case)
    console.print(
        f"{per_image:.1f} ms per image: {slower / per_image:.2f} of the slower part's rate (goal "
        f"0.9); {memory[0]:.0f} MB after a quarter, {memory[1]:.0f} MB at the end"
    )
    segmenter.close()
    return [case]


SECTIONS = {
    "post": section_post,
    "hard": section_hard,
    "network": section_network,
    "photo": section_image,
    "stream": section_stream,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--work", type=Path, default=Path("build/cpu_end_to_end"))
    parser.add_argument("--plot", type=Path, help="write a plot of all ratios to this .png file")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        task, size_name, row = options.memory
        print(extra_memory(post_jobs(task, IMAGE_SIZES[size_name])[row]))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for run in range(options.runs):
        console.print(f"run {run + 1} of {options.runs}")
        runs.append([c for name in options.sections for c in SECTIONS[name](options, run)])
        if options.json:  # after each run, in case the next one is interrupted
            data = {"kind": "cpu-end-to-end", "environment": environment(), "runs": runs}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"schema": 1, **data}, indent=1) + "\n")
    if options.plot:
        options.plot.write_bytes(plot(runs))


if __name__ == "__main__":
    main()
