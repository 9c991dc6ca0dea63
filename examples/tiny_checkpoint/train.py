"""Train the tiny EoMT from scratch, annealing its masked attention away as in the paper.

python train.py runs/main --steps 6000 --anneal 1800 4800
python train.py runs/kept --steps 2600 --resume runs/main/fork.pt --keep-masks
python train.py runs/longer --steps 9000 --start runs/main/last.bin --aux 0
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import Batch, batches
from losses import NO_OBJECT_WEIGHT, loss
from network import EoMT, Shape, checkpoint, from_checkpoint
from scenes import write_classes
from torch import Tensor

POWER = 0.9  # of both the learning rate's and the masks' polynomial decay


@dataclass(frozen=True)
class Plan:
    steps: int
    warmup: int
    learning_rate: float
    anneal: tuple[int, int]  # first step with a lowered probability, first step with none
    keep_masks: bool
    average: float  # decay of the moving average

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warm * float((1 - step / self.steps) ** POWER)

    def mask_probabilities(self, step: int, blocks: int) -> list[float]:
        """1 before annealing, 0 after; between, one block after the other, the first one first."""
        if self.keep_masks:
            return [1.0] * blocks
        first, last = self.anneal
        if step >= last:
            return [0.0] * blocks
        span = (last - first) / blocks
        shares = [(step - first - i * span) / span for i in range(blocks)]
        return [(1 - min(1.0, max(0.0, share))) ** POWER for share in shares]


class Average:
    """Moving average of the parameters: what is exported, smoother than the last step."""

    def __init__(self, model: EoMT, decay: float) -> None:
        self.decay = decay
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: EoMT, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))  # young averages must forget quickly
        torch._foreach_lerp_(self.values, list(model.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self, model: EoMT) -> None:
        for average, parameter in zip(self.values, model.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def decay_groups(model: EoMT) -> list[dict[str, Any]]:
    """Weight decay is for matrices; gains, biases, tokens and positions go without."""
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith(".weight")]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def save(path: Path, value: Any) -> None:
    """Write beside, then rename: a killed run never leaves half a file."""
    temporary = path.with_suffix(".part")
    torch.save(value, temporary)
    os.replace(temporary, path)


def fast_bf16() -> bool:
    """BF16 pays only where the CPU multiplies it in hardware; emulated, it is 9 times slower."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


class Trainer:
    def __init__(
        self, out: Path, shape: Shape, plan: Plan, seed: int, batch: int, aux: int
    ) -> None:
        self.out, self.plan, self.seed, self.batch, self.aux = out, plan, seed, batch, aux
        torch.manual_seed(seed)
        self.model = EoMT(shape)
        self.average = Average(self.model, plan.average)
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model), plan.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.step, self.seconds, self.bf16 = 0, 0.0, fast_bf16()

    def snapshot(self, name: str) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "shape": self.model.shape.as_dict(),
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
        }
        save(self.out / f"{name}.pt", state)
        self.average.swap(self.model)
        save(self.out / f"{name}.bin", checkpoint(self.model, NO_OBJECT_WEIGHT))
        self.average.swap(self.model)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["shape"] != self.model.shape.as_dict():
            raise SystemExit(f"{path} is a {state['shape']}, this run is {self.model.shape}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]

    def start(self, path: Path) -> None:
        """Begin a new schedule with the weights of a trained `.bin` file, whose masks are off."""
        self.model.load_state_dict(
            from_checkpoint(torch.load(path, weights_only=True)).state_dict()
        )
        self.average = Average(self.model, self.plan.average)

    def update(self, batch: Batch, rng: random.Random) -> Tensor:
        """One step; returns the mask, dice and class loss of the final prediction."""
        plan, blocks = self.plan, self.model.shape.num_blocks
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(self.step)
        probabilities = plan.mask_probabilities(self.step, blocks)
        self.model.attn_mask_probs.copy_(torch.tensor(probabilities))
        # All intermediate predictions cost as much as the network. A random few of them, in turn,
        # teach nearly as much in each step and leave time for more steps.
        aux = rng.sample(range(blocks), self.aux)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            predictions = self.model(batch.images, masked=True, aux=aux)
        parts = {i: torch.stack(loss(p, batch)) for i, p in predictions.items()}
        self.optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(parts.values())).sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        return parts[blocks].detach()

    def run(self, log_every: int, save_every: int) -> None:
        begun, before = time.perf_counter(), self.seconds
        source = batches(self.seed, self.step, self.batch, self.model.shape.size)
        recent: list[Tensor] = []
        first = self.step
        while self.step < self.plan.steps:
            if self.step == self.plan.anneal[0] and not self.plan.keep_masks:
                self.snapshot("fork")  # the last moment at which all masks are on
            torch.manual_seed(self.seed * 1_000_003 + self.step)  # the same with and without resume
            recent.append(self.update(next(source), random.Random(self.seed + self.step)))
            self.step += 1
            self.seconds = before + time.perf_counter() - begun
            if self.step % log_every == 0:
                self.log(torch.stack(recent).mean(0), (self.seconds - before) / (self.step - first))
                recent.clear()
            if self.step % save_every == 0:
                self.snapshot("last")
        probabilities = self.plan.mask_probabilities(self.step, self.model.shape.num_blocks)
        self.model.attn_mask_probs.copy_(torch.tensor(probabilities))
        self.snapshot("last")
        source.close()

    def log(self, parts: Tensor, per_step: float) -> None:
        left = (self.plan.steps - self.step) * per_step
        mask, dice, category = parts.tolist()
        masks = " ".join(f"{p:.2f}" for p in self.model.attn_mask_probs.tolist())
        print(
            f"step {self.step}/{self.plan.steps}  mask {mask:.3f}  dice {dice:.3f}  "
            f"class {category:.3f}  masks on {masks}  lr {self.plan.rate(self.step - 1):.1e}  "
            f"{per_step * 1000:.0f} ms/step  {self.seconds / 60:.1f} min, {left / 60:.1f} left",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny EoMT on procedural scenes.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--anneal", type=int, nargs=2, metavar=("FROM", "TO"))
    parser.add_argument("--keep-masks", action="store_true", help="never anneal (Table 7)")
    parser.add_argument("--resume", type=Path, help="a .pt file of this or of another run")
    parser.add_argument("--start", type=Path, help="a .bin file to train further, without masks")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--aux", type=int, default=1, help="intermediate predictions in a step")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--average", type=float, default=0.999, help="decay; 0.99 for short runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    args = parser.parse_args()
    if not 0 <= args.aux <= Shape.num_blocks:
        parser.error(f"--aux {args.aux}: there are {Shape.num_blocks} intermediate predictions")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # tiny averages of gradients would slow AdamW down
    np.random.seed(args.seed)
    if args.start and (args.resume or args.anneal or args.keep_masks):
        parser.error("--start trains without masks: leave out --resume, --anneal and --keep-masks")
    first, last = (
        (0, 0)
        if args.start
        else args.anneal or (math.ceil(0.3 * args.steps), math.ceil(0.8 * args.steps))
    )
    plan = Plan(args.steps, 200, args.lr, (first, last), args.keep_masks, args.average)
    args.out.mkdir(parents=True, exist_ok=True)
    write_classes(args.out / "classes.json")
    trainer = Trainer(args.out, Shape(), plan, args.seed, args.batch, args.aux)
    if args.resume:
        trainer.resume(args.resume)
    elif args.start:
        trainer.start(args.start)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{parameters / 1e6:.2f}M parameters, bf16 {trainer.bf16}, step {trainer.step}", flush=True
    )
    trainer.run(args.log_every, args.save_every)


if __name__ == "__main__":
    main()
