"""The result of all checkpoint readers."""

from __future__ import annotations

from dataclasses import dataclass

from eomt_deploy.architecture import Architecture
from eomt_deploy.checkpoints.blockwise import BlockwiseTensors
from eomt_deploy.spec import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our own key layout, and what was inferred from them.

    Attributes:
        tensors: state dict of :class:`eomt_deploy.network.eomt.EoMT`, with dtypes as stored; read
            lazily.
        architecture: all widths and counts.
        native_grid: patch grid (rows, columns) that ``pos_embed`` was trained at; None if it is
            unknown.
        attn_mask_probs: masked-attention probability of each of the last blocks; None if the file
            does not store it.
        class_names: class names stored with the weights, if any.
        source_format: ``official``, ``huggingface`` or ``lightly-train``, and the backbone family.
        sha256: digest of the weight files.
        task: task stored in the file (LightlyTrain), if any.
        things: for each class, whether it is a thing, if the file stores it.
        position_offset: offset for resampling positions, see
            :func:`eomt_deploy.network.position.resample_position`.
        trained_size: trained (H, W) in pixels, if the file stores it.
        weights_key: place of the weights in the file; empty if there is no choice.
        stripped: prefixes and wrappers that were removed from the keys, as text; empty if none.
        revision: commit of the downloaded Hugging Face repository, if any.
        notes: warnings about how the file was read.
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
        """Number of trained parameters, without the two normalisation buffers."""
        shapes = self.tensors.shapes
        return sum(t.numel() for k, t in shapes.items() if not k.startswith("pixel_"))

    @property
    def bytes(self) -> int:
        """Size of all weights in the stored types, in bytes."""
        return sum(t.nbytes for t in self.tensors.shapes.values())
