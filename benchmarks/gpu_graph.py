"""Forms of the network for PyTorch on a GPU, each as `torch.compile` in one CUDA graph.

    python benchmarks/gpu_graph.py --output graph.json         # EoMT-S and EoMT-L, FP16

A form becomes part of the package only if it is faster here. Each adds to the one before it:

* plain: convolutions, as in the checkpoint
* patches: the patch embedding is one matrix product
* upscale: the transposed convolutions are matrix products, channels stay last
* depthwise: the 3x3 convolutions are nine multiplications, in one kernel with the LayerNorm
* fp8: qkv, fc1 and fc2 are FP8 matrix products (compute capability 8.9 or later); the weights are
  random, so that only the time means something
* tuned: depthwise, and Triton's matrix products compete with cuBLAS (with GELU in the same kernel)

Each form runs in its own process, because compilers keep their settings. The processes compile in
parallel and measure one after the other.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # eomt_deploy may not be installed
from random_model import SIZE, random_small  # noqa: E402

from eomt_deploy.network.eomt import EoMT, fused_attention  # noqa: E402
from eomt_deploy.network.folds import fold  # noqa: E402

FORMS = ("plain", "patches", "upscale", "depthwise", "fp8", "tuned")
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
WARMUP, ROUNDS = 50, 200


class GpuForm(nn.Module):
    """The same function as a folded :class:`EoMT` with learned positions, in another form.

    Args:
        model: the network, whose weights it shares.
        form: one of :data:`FORMS`.
    """

    def __init__(self, model: EoMT, form: str) -> None:
        super().__init__()
        self.model = model
        self.level = FORMS.index("depthwise" if form == "tuned" else form)
        conv = model.backbone.patch_embed.proj
        self.patch_weight = _fixed(conv.weight.permute(0, 2, 3, 1).flatten(1))
        self.upscale = nn.ModuleList(
            UpscaleForm(step, depthwise=self.level >= FORMS.index("depthwise"))
            for step in model.upscale
        )
        if form == "fp8":
            for block in model.backbone.layers:
                block.attn.qkv = Fp8Linear(block.attn.qkv)  # type: ignore[assignment]
                block.mlp.fc1 = Fp8Linear(block.mlp.fc1)
                block.mlp.fc2 = Fp8Linear(block.mlp.fc2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model, backbone = self.model, self.model.backbone
        x = self.embed(images) if self.level >= FORMS.index("patches") else model.embed(images)
        first = model.arch.depth - model.arch.num_blocks
        for block in backbone.layers[:first]:
            x = block(x)
        x = model.with_queries(x)
        for block in backbone.layers[first:]:
            x = block(x)
        tokens = backbone.norm(x)
        if self.level < FORMS.index("upscale"):
            return model.predict(tokens)
        queries = tokens[:, : model.arch.num_queries]
        patches = tokens[:, model.arch.num_queries + model.arch.num_prefix :]
        features = patches.reshape(-1, *model.grid, model.arch.width)
        for step in self.upscale:
            features = step(features)
        height, width = features.shape[1:3]
        masks = model.mask_head(queries) @ features.flatten(1, 2).transpose(1, 2)
        return model.class_head(queries), masks.reshape(*masks.shape[:2], height, width)

    def embed(self, images: Tensor) -> Tensor:
        model, (rows, columns) = self.model, self.model.grid
        side = model.arch.patch_size
        x = images.view(-1, rows, side, columns, side, 3).transpose(2, 3)
        x = x.reshape(-1, rows * columns, side * side * 3).to(self.patch_weight.dtype)
        x = F.linear(x, self.patch_weight, model.backbone.patch_embed.proj.bias)
        x = x + model.backbone.pos_embed
        return torch.cat([model.backbone.prefix().expand(len(images), -1, -1), x], dim=1)


class UpscaleForm(nn.Module):
    """An upscaling step on [B, h, w, D] -> [B, 2h, 2w, D]."""

    def __init__(self, step: Any, *, depthwise: bool) -> None:
        super().__init__()
        weight = step.conv1.weight  # [D, D', 2, 2]
        self.weight = _fixed(weight.permute(2, 3, 1, 0).flatten(0, 2))  # [2 * 2 * D', D]
        self.bias = _fixed(step.conv1.bias.repeat(4))
        self.taps = _fixed(step.conv2.weight[:, 0].permute(1, 2, 0))  # [3, 3, D]
        self.step, self.depthwise = step, depthwise

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, width = x.shape
        x = F.gelu(F.linear(x, self.weight, self.bias))
        x = x.view(-1, h, w, 2, 2, width).transpose(2, 3).reshape(-1, 2 * h, 2 * w, width)
        norm = self.step.norm
        if not self.depthwise:
            y = self.step.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return F.layer_norm(y, (width,), norm.weight, norm.bias, norm.eps)
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        shifted = (padded[:, i : i + 2 * h, j : j + 2 * w] for i in range(3) for j in range(3))
        taps = self.taps.float().flatten(0, 1)
        total = sum(a.float() * b for a, b in zip(shifted, taps, strict=True))
        y = F.layer_norm(total, (width,), norm.weight.float(), norm.bias.float(), norm.eps)
        return y.to(x.dtype)


class Fp8Linear(nn.Module):
    """A linear layer with FP8 inputs and weights, and one scale for each of the two."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        scale = linear.weight.abs().amax().float() / FP8_MAX
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", torch.full_like(scale, 4 / FP8_MAX))
        self.register_buffer("weight", (linear.weight.float() / scale).to(FP8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        scale: Any = self.input_scale
        small = (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).flatten(0, 1)
        y = torch._scaled_mm(
            small, weight.t(), scale, self.weight_scale, bias=self.bias, out_dtype=x.dtype,
            use_fast_accum=True,
        )  # fmt: skip
        return y.view(*x.shape[:-1], -1)


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def measure(shape: str, form: str, lock: Path) -> dict[str, Any]:
    """Compile and time one form on the GPU.

    Args:
        shape: shape of the network, see :func:`random_small`.
        form: one of :data:`FORMS`.
        lock: file that only the process that measures locks.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network = fold(random_small(shape)[0]).cuda()
    images = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8, device="cuda")
    torch.backends.cudnn.benchmark = True
    if form == "tuned":
        from torch._inductor import config

        config.max_autotune_gemm = True
        config.max_autotune_gemm_backends = "ATEN,TRITON"
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    with torch.inference_mode(), fused_attention(network):
        wanted = network(images)
        with sdpa_kernel(order, set_priority=True):
            call = torch.compile(GpuForm(network.half(), form).cuda(), fullgraph=True)
            began = time.perf_counter()
            outputs = call(images)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            graph = captured(call, images)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            times = replay_times(graph)
            kernels = kernel_times(graph)
    return {
        "p50_ms": round(statistics.median(times), 4),
        "min_ms": round(min(times), 4),
        "compile_seconds": round(seconds, 1),
        "error": [rms(o.float() - w) / rms(w) for o, w in zip(outputs, wanted, strict=True)],
        "kernels_us": kernels,
    }


def rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def captured(call: Any, images: Tensor) -> Any:
    side: Any = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(images)
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(images)
    return graph


def replay_times(graph: Any) -> list[float]:
    for _ in range(WARMUP):
        graph.replay()
    times = []
    for _ in range(ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return times


def kernel_times(graph: Any, rounds: int = 5, most: int = 25) -> dict[str, float]:
    """Microseconds per replay of the kernels that take the most time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            graph.replay()
        torch.cuda.synchronize()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)[:most]
    return {
        f"{row.count // rounds} x {row.key[:100]}": round(row.self_device_time_total / rounds, 1)
        for row in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time forms of the network on a GPU.")
    parser.add_argument("--output", type=Path, default=Path("gpu_graph.json"))
    parser.add_argument("--shapes", nargs="+", default=["L", "S"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "FORM", "LOCK"), help="For itself.")
    options = parser.parse_args()
    if options.one:
        shape, form, lock = options.one
        print(json.dumps(measure(shape, form, Path(lock))))
        return
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        running = {
            f"EoMT-{shape} {form}": subprocess.Popen(
                [sys.executable, __file__, "--one", shape, form, f"{folder}/lock"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for shape in options.shapes
            for form in options.forms
        }  # fmt: skip
        for name, process in running.items():
            out, err = process.communicate()
            failed = {"failed": err.strip()[-500:]}
            found[name] = json.loads(out.splitlines()[-1]) if process.returncode == 0 else failed
            print(name, json.dumps(found[name]), flush=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any("failed" in row for row in found.values()))


if __name__ == "__main__":
    main()
