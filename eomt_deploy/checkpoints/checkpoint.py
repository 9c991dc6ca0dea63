"""What every checkpoint reader returns."""

from __future__ import annotations

from dataclasses import dataclass

from eomt_deploy.architecture import Architecture
from eomt_deploy.checkpoints.blockwise import BlockwiseTensors
from eomt_deploy.spec import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our own key layout, with what could be read off them.

    Attributes:
        tensors: state dict of :class:`eomt_deploy.network.eomt.EoMT`, dtypes as stored, read when
            they are asked for.
        architecture: all widths and counts.
        native_grid: patch grid (rows, columns) that ``pos_embed`` was trained at, or None
            when its length is no square and nothing else tells.
        attn_mask_probs: masked-attention probability of each of the last blocks; None when
            the file has none.
        class_names: names stored beside the weights (Hugging Face), else None.
        source_format: ``official``, ``huggingface`` or ``lightly-train``, and the family.
        sha256: digest of the weight files.
        task: where the file tells (LightlyTrain).
        things: which of the classes are things, where the file tells.
        position_offset: how positions are resampled, see
            :func:`eomt_deploy.network.position.resample_position`.
        trained_size: (H, W) in pixels, where the file tells and the positions are for another one.
        weights_key: where in the file the weights are; empty where there is no choice.
        stripped: what the keys in the file have besides those of the layout; empty where nothing.
        revision: commit of the Hugging Face repository that was downloaded.
        notes: what the user should know of how the file was read.
    """

    tensors: BlockwiseTensors
    architecture: Architecture
    native_grid: tuple[int, int] | None
    attn_mask_probs: tuple[float, ...] | None
    class_names: tuple[str, ...] | None
    source_format: str
    sha256: str
    task: Task | None = None
    things: tuple[bool, ...] | None = None
    position_offset: float = 0.0
    trained_size: tuple[int, int] | None = None
    weights_key: str = ""
    stripped: str = ""
    revision: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of trained values; the two normalisation buffers are none."""
        shapes = self.tensors.shapes
        return sum(t.numel() for k, t in shapes.items() if not k.startswith("pixel_"))

    @property
    def bytes(self) -> int:
        """Size of all weights as they are stored."""
        return sum(t.nbytes for t in self.tensors.shapes.values())
