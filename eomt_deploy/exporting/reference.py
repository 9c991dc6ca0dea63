"""A checkpoint in PyTorch as an engine, as the reference for exported model files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eomt_deploy.backends import Engine
from eomt_deploy.backends.engine import Outputs
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.errors import UsageError
from eomt_deploy.exporting.network import build_network
from eomt_deploy.network.eomt import EoMT, fused_attention, on_gpu
from eomt_deploy.spec import ModelSpec


class NetworkEngine(Engine):
    """A network in memory that runs in float32 with batches of any size, on a GPU if possible."""

    backend = "torch"
    splits = True

    def __init__(self, model: EoMT, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        model = self._model
        with fused_attention(model), on_gpu(model) as device, torch.inference_mode():
            class_logits, mask_logits = model(torch.from_numpy(images).to(device))
        return class_logits.cpu().numpy(), mask_logits.cpu().numpy()


class TorchEngine(NetworkEngine):
    """The network of a checkpoint, without folds.

    Args:
        path: anything that :func:`eomt_deploy.checkpoints.read_checkpoint` takes.
        spec: description of the model file that it is compared with.
        base_weights: DINOv3 weights that the checkpoint adds to, if it needs them.
        weights_key: weights to take from the file; None takes those that the model file was
            exported from, if the file has them, else the EMA weights, if any.
        insecure: allow ``http://`` URLs without a hash.

    Attributes:
        notes: warnings about how the checkpoint was read.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UsageError: its network differs from that of the model file.
    """

    def __init__(
        self,
        path: str | Path,
        spec: ModelSpec,
        base_weights: str | None = None,
        weights_key: str | None = None,
        insecure: bool = False,
    ) -> None:
        checkpoint = read_checkpoint(
            path,
            heads=spec.backbone.heads,
            num_blocks=spec.num_blocks,
            base_weights=base_weights,
            weights_key=weights_key,
            preferred_key=spec.provenance.get("weights_key"),
            insecure=insecure,
        )
        arch = checkpoint.architecture
        found = (arch.width, arch.depth, arch.num_queries, arch.num_classes)
        wanted = (
            spec.backbone.width, spec.backbone.depth, spec.num_queries, len(spec.classes),
        )  # fmt: skip
        if found != wanted:
            raise UsageError(
                f"{path} is not the checkpoint of {spec.name}: its width, depth, queries and "
                f"classes are {found}, expected {wanted}.",
                fix="Pass the checkpoint that the model was exported from.",
            )
        network = build_network(checkpoint, spec.image_size)
        if torch.cuda.is_available():
            network.cuda()  # for the lifetime of the engine
        super().__init__(network, spec)
        self.notes = checkpoint.notes
        self.path = Path(path) if Path(path).is_file() else None
