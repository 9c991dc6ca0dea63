"""A network in PyTorch: eager, compiled, in a CUDA graph, and as an AOTInductor package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eomt_deploy.backends.engine import Outputs
from eomt_deploy.benchmarking.measure.clock import CPU_TIMER
from eomt_deploy.benchmarking.measure.gpu_clock import TorchEventTimer
from eomt_deploy.benchmarking.paper.runtimes import Case, Images, Running
from eomt_deploy.cache import keep_files_of_torch
from eomt_deploy.precision import PRECISIONS

keep_files_of_torch()

Call = Callable[[Tensor], tuple[Tensor, Tensor]]
GRAPH_WARMUP = 3
"""Calls before a capture, because libraries allocate their workspaces in the first calls."""
MANY_NETWORKS = 64
"""torch.compile counts the rows of a suite as recompilations of one function, with a default limit
of 8."""


class TorchRunning(Running):
    """A callable on tensors of one device.

    Args:
        call: images uint8 [B, H, W, 3] -> (class logits, mask logits), on the device.
        case: the case of the network.
        cuda_graph: capture the call in one CUDA graph.
    """

    def __init__(self, call: Call, case: Case, *, cuda_graph: bool = False) -> None:
        images = torch.from_numpy(case.images)
        self._gpu = case.device == "cuda"
        self._pinned = images.pin_memory() if self._gpu else images
        self._input = images.to(case.device)
        self._call = _captured(call, self._input) if cuda_graph else call
        self._host: list[Tensor] = []
        self.device = case.device
        self.timer = TorchEventTimer() if self._gpu else CPU_TIMER
        with torch.inference_mode():
            outputs = self._call(self._input)  # compiles, if needed
            if self._gpu:
                self._host = [torch.empty_like(o, device="cpu").pin_memory() for o in outputs]
                torch.cuda.synchronize()

    def network(self) -> None:
        with torch.inference_mode():
            self._call(self._input)

    def copies(self) -> None:
        if not self._gpu:
            return self.network()
        with torch.inference_mode():
            self._input.copy_(self._pinned, non_blocking=True)
            for host, output in zip(self._host, self._call(self._input), strict=True):
                host.copy_(output, non_blocking=True)
        torch.cuda.synchronize()
        return None

    def run(self, images: Images) -> Outputs:
        with torch.inference_mode():
            self._input.copy_(torch.from_numpy(images))
            class_logits, mask_logits = (o.float().cpu() for o in self._call(self._input))
        # Copies, because the next call may overwrite these tensors.
        return np.array(class_logits), np.array(mask_logits)


def torch_type(precision: str) -> torch.dtype:
    kind: torch.dtype = getattr(torch, PRECISIONS[precision].dtype)
    return kind


def prepare(case: Case) -> tuple[nn.Module, str | None]:
    """The network in its precision on its device, and the autocast precision, if any."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark = True  # shapes are fixed: search the fastest algorithm once
    network = case.build("sdpa", case.device)
    if case.precision.startswith("amp-"):
        return network, case.precision.removeprefix("amp-")
    return network.to(torch_type(case.precision)), None


def _mixed(network: Callable[..., Any], amp: str | None, device: str) -> Call:
    """The network under autocast in precision ``amp``; unchanged for None."""
    if amp is None:
        return network
    kind = torch_type(amp)

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device, kind, cache_enabled=False):
            outputs: tuple[Tensor, Tensor] = network(images)
            return outputs

    return call


def eager(case: Case) -> Running:
    """Open the network in eager mode."""
    network, amp = prepare(case)
    return TorchRunning(_mixed(network, amp, case.device), case)


def compiled(case: Case, mode: str = "default") -> Running:
    """Open the network with ``torch.compile``; a graph break is an error, not a slower row."""
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MANY_NETWORKS)
    network, amp = prepare(case)
    inner = torch.compile(network, mode=mode, fullgraph=True, dynamic=False)
    call = _mixed(inner, amp, case.device)
    if mode == "default":
        return TorchRunning(call, case)
    compiler: Any = torch.compiler  # its functions have no annotations

    def step(images: Tensor) -> tuple[Tensor, Tensor]:
        compiler.cudagraph_mark_step_begin()  # outputs of the previous call may be freed
        return call(images)

    return TorchRunning(step, case)


def graph(case: Case) -> Running:
    """Open the network in eager mode, captured in one CUDA graph."""
    network, amp = prepare(case)
    return TorchRunning(_mixed(network, amp, case.device), case, cuda_graph=True)


def aotinductor(case: Case, *, cuda_graph: bool = False) -> Running:
    """Export the network, compile it ahead of time to a ``.pt2`` file, and open that file."""
    from eomt_deploy.backends.aotinductor.engine import load_package, save_package

    network, amp = prepare(case)
    if amp is not None:
        network = _Autocast(network, amp, case.device)
    path = case.folder / f"{case.row.name.replace(' ', '-')}.{len(case.images)}.pt2"
    save_package(network, case.spec, path, batch=len(case.images), device=case.device)
    # Only a package without locks between threads can be captured.
    call: Call = load_package(path, single_threaded=cuda_graph)
    return TorchRunning(call, case, cuda_graph=cuda_graph)


class _Autocast(nn.Module):
    """Network with autocast inside, so that an exported program also has it."""

    def __init__(self, network: nn.Module, amp: str, device: str) -> None:
        super().__init__()
        self.network = network
        self._call = _mixed(network, amp, device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(images)


def _captured(call: Call, buffer: Tensor) -> Call:
    """Capture a call in one CUDA graph; later calls must fill and pass the same ``buffer``."""
    cuda: Any = torch.cuda  # its classes have no annotations
    with torch.inference_mode():
        side = cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARMUP):
                call(buffer)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            outputs = call(buffer)

    def replay(images: Tensor) -> tuple[Tensor, Tensor]:
        assert images is buffer  # the graph reads the memory of its capture
        captured.replay()
        return outputs

    return replay
