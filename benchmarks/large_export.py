"""Memory use of exports, measured with a synthetic checkpoint of a few GB.

    python benchmarks/large_export.py [--blocks 24] [--width 2048] [--json FILE]

The checkpoint has random weights, SwiGLU blocks and Hugging Face's keys, in shards. Each export is
a separate command. Its peak resident memory, including mapped files, must stay below 1.3 times
the size of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from eomt_deploy.benchmarking.machine.environment import environment

LIMIT = 1.3
HEAD_WIDTH = 128
CLASSES, QUERIES, LAST_BLOCKS = 133, 200, 5
PATCH, GRID = 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory use of exports.")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as name:
        for stored in (torch.float32, torch.bfloat16):
            folder = Path(name) / str(stored).removeprefix("torch.")
            size = write_checkpoint(folder, options.width, options.blocks, stored)
            for precision in ("fp32", "fp16", "bf16"):
                row = {"checkpoint": folder.name, "bytes": size, **export(folder, precision)}
                row["ratio"] = row["peak_bytes"] / size
                rows.append(row)
                print(
                    f"{folder.name} checkpoint of {size / 1e9:.2f} GB to {precision}: peak "
                    f"{row['peak_bytes'] / 1e9:.2f} GB ({row['ratio']:.2f}), "
                    f"{row['seconds']:.0f} s",
                    flush=True,
                )
    if options.json:
        found = {"kind": "large-export", "environment": environment(), "limit": LIMIT, "rows": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    # A 16-bit checkpoint is computed in FP32, block by block, so the limit is for FP32 checkpoints.
    over = [row for row in rows if row["checkpoint"] == "float32" and row["ratio"] > LIMIT]
    sys.exit(f"{len(over)} exports need more than {LIMIT} times the weights' size" if over else 0)


def write_checkpoint(folder: Path, width: int, blocks: int, dtype: torch.dtype) -> int:
    """Write random weights, one shard per block; returns their size in bytes."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    places, total = {}, 0
    for index, shapes in enumerate(shards(width, blocks)):
        tensors = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator)
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.02
            tensors[name] = (values * scale + (len(shape) == 1 and "norm" in name)).to(dtype)
        if "attn_mask_probs" in tensors:
            tensors["attn_mask_probs"] = torch.zeros(LAST_BLOCKS)
        file = f"model-{index:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index_text)
    config = {
        "model_type": "eomt", "num_attention_heads": width // HEAD_WIDTH, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "image_size": PATCH * GRID,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    classes = [{"name": f"class {i}", "thing": i < 80} for i in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps(classes))
    return total


def shards(width: int, blocks: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of transformers' EoMT with SwiGLU; blocks come last, one per shard."""
    hidden = (int(width * 4 * 2 / 3) + 7) // 8 * 8
    rest: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.register_tokens": (1, 4, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "embeddings.position_embeddings.weight": (GRID * GRID, width),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "query.weight": (QUERIES, width),
        "class_predictor.weight": (CLASSES + 1, width),
        "class_predictor.bias": (CLASSES + 1,),
        "attn_mask_probs": (LAST_BLOCKS,),
    }
    for part in ("fc1", "fc2", "fc3"):
        rest |= {f"mask_head.{part}.weight": (width, width), f"mask_head.{part}.bias": (width,)}
    for step in range(2):
        prefix = f"upscale_block.block.{step}"
        rest |= {
            f"{prefix}.conv1.weight": (width, width, 2, 2),
            f"{prefix}.conv1.bias": (width,),
            f"{prefix}.conv2.weight": (width, 1, 3, 3),
            f"{prefix}.layernorm2d.weight": (width,),
            f"{prefix}.layernorm2d.bias": (width,),
        }
    yield rest
    for block in range(blocks):
        shapes: dict[str, tuple[int, ...]] = {}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"attention.{part}.weight"] = (width, width)
            shapes[f"attention.{part}.bias"] = (width,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        for scale in ("layer_scale1", "layer_scale2"):
            shapes[f"{scale}.lambda1"] = (width,)
        shapes |= {
            "mlp.weights_in.weight": (2 * hidden, width),
            "mlp.weights_in.bias": (2 * hidden,),
            "mlp.weights_out.weight": (width, hidden),
            "mlp.weights_out.bias": (width,),
        }
        yield {f"layers.{block}.{name}": shape for name, shape in shapes.items()}


def export(folder: Path, precision: str) -> dict[str, float | str]:
    """Run `eomt-deploy export`; returns its time and its peak resident memory."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        command = [
            sys.executable, "-m", "eomt_deploy", "export", str(folder), "--task", "panoptic",
            "--classes", str(folder / "classes.json"), "--precision", precision,
            "-o", str(Path(name) / "m.onnx"),
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None  # because stdout is a pipe
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"The export to {precision} failed:\n{output}")
        seconds = time.perf_counter() - start
    return {"precision": precision, "peak_bytes": usage.ru_maxrss * 1024, "seconds": seconds}


if __name__ == "__main__":
    main()
