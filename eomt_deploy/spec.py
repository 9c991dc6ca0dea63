"""ModelSpec: the contract that travels inside every exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from eomt_deploy.errors import ArtifactError

Task = Literal["semantic", "instance", "panoptic"]
ResizeRule = Literal["letterbox", "windows"]
Mlp = Literal["gelu", "swiglu"]
TASKS: tuple[Task, ...] = get_args(Task)

SCHEMA_VERSION = 1
METADATA_KEY = "eomt_deploy.spec"
"""Key of the ONNX ``metadata_props`` entry that holds the spec as JSON."""

RESIZE_RULES: dict[Task, ResizeRule] = {
    "semantic": "windows",
    "instance": "letterbox",
    "panoptic": "letterbox",
}


@dataclass(frozen=True)
class ClassInfo:
    """One class: ``id`` is its column in the class logits, ``color`` is RGB 0-255."""

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Thresholds:
    """Defaults of the run-time thresholds (paper code: 0.8 / 0.5 / 0.8 for panoptic).

    Attributes:
        score: least class score of a query (panoptic) or final score of an instance.
        mask: least mask probability of a pixel (panoptic).
        overlap: least share of its own mask that a segment must win (panoptic).
    """

    score: float = 0.8
    mask: float = 0.5
    overlap: float = 0.8


TASK_THRESHOLDS: dict[Task, Thresholds] = {
    "semantic": Thresholds(score=0.0),
    # The official instance result is the top 100 whatever their score.
    "instance": Thresholds(score=0.0),
    "panoptic": Thresholds(),
}


@dataclass(frozen=True)
class Backbone:
    """Facts of the Vision Transformer, as read from the checkpoint."""

    family: str
    width: int
    depth: int
    heads: int
    mlp: Mlp
    registers: int
    parameters: int


@dataclass(frozen=True)
class ModelSpec:
    """What a run-time must know about a model to turn photos into segments.

    Attributes:
        name: short name shown to people.
        task: ``semantic``, ``instance`` or ``panoptic``.
        image_size: network input (H, W) in pixels.
        patch_size: side of a patch in pixels.
        num_queries: queries Q.
        num_blocks: last blocks that see the queries.
        num_upscale: x2 upscaling steps between patch grid and mask logits.
        classes: all C classes in the order of the class logits ("no object" excluded).
        resize: how an image is brought to ``image_size``.
        thresholds: defaults of the run-time thresholds.
        backbone: facts of the encoder.
        precision: arithmetic of the graph, ``fp32`` in this version.
        batch: fixed batch size, or None when it is free.
        provenance: checkpoint SHA-256, source format, tool and library versions.
    """

    name: str
    task: Task
    image_size: tuple[int, int]
    patch_size: int
    num_queries: int
    num_blocks: int
    num_upscale: int
    classes: tuple[ClassInfo, ...]
    resize: ResizeRule
    thresholds: Thresholds
    backbone: Backbone
    precision: str = "fp32"
    batch: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        height, width = self.image_size
        problems = []
        if self.task not in TASKS:
            problems.append(f"task {self.task!r} is not one of {', '.join(TASKS)}")
        if self.resize not in get_args(ResizeRule):
            problems.append(f"resize rule {self.resize!r} is unknown")
        if self.patch_size < 1 or height < 1 or width < 1:
            problems.append("image and patch size must be positive")
        elif height % self.patch_size or width % self.patch_size:
            problems.append(f"size {height}x{width} is no multiple of patch {self.patch_size}")
        if self.num_upscale < 0 or 2**self.num_upscale > max(1, self.patch_size):
            problems.append(f"{self.num_upscale} upscalings give masks larger than the image")
        if self.num_queries < 1:
            problems.append("no queries")
        if not self.classes:
            problems.append("no classes")
        if [c.id for c in self.classes] != list(range(len(self.classes))):
            problems.append("class ids must count from 0 without gaps")
        if self.batch is not None and self.batch < 1:
            problems.append(f"batch {self.batch} is not positive")
        if problems:
            raise ArtifactError("The model description is wrong: " + "; ".join(problems) + ".")

    @property
    def mask_size(self) -> tuple[int, int]:
        """(H, W) of the mask logits: a quarter of the image for patch 16."""
        scale = 2**self.num_upscale
        height, width = self.image_size
        return height // self.patch_size * scale, width // self.patch_size * scale

    def to_json(self) -> str:
        """The spec as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read a spec written by :meth:`to_json`.

        Raises:
            ArtifactError: not JSON, a field missing or wrong, or a newer schema.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ArtifactError(
                    f"The model description has schema {version}, this eomt-deploy reads "
                    f"schema {SCHEMA_VERSION}.",
                    fix="Export the checkpoint again, or install the version that wrote it "
                    f"({data.get('provenance', {}).get('eomt_deploy', 'unknown')}).",
                )
            data["image_size"] = tuple(data["image_size"])
            data["classes"] = tuple(
                ClassInfo(**{**c, "color": tuple(c["color"])}) for c in data["classes"]
            )
            data["thresholds"] = Thresholds(**data["thresholds"])
            data["backbone"] = Backbone(**data["backbone"])
            return cls(**data)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"The model description inside the file cannot be read ({error!r}).",
                fix="Export the checkpoint again with this version of eomt-deploy.",
            ) from error
