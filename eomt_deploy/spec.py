"""ModelSpec: the description that is stored in every exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.fields import (
    MAX_NAME,
    Items,
    One,
    Record,
    Words,
    check_fields,
    flag,
    integer,
    is_printable,
    one_of,
    optional,
    read_object,
    share,
    shown,
    text,
)
from eomt_deploy.precision import AUTOCAST, PRECISIONS

Task = Literal["semantic", "instance", "panoptic"]
ResizeRule = Literal["letterbox", "windows"]
Mlp = Literal["gelu", "swiglu"]
TASKS: tuple[Task, ...] = get_args(Task)

MIN_SIDE, MAX_SIDE = 8, 16_384
"""Minimum and maximum height and width of the network's input, in pixels."""
MAX_MASK_LOGITS = 2**31
"""Maximum number of mask logits of one network input: 8 GiB as FP32."""
MAX_CLASSES, MAX_QUERIES, MAX_BATCH = 16_384, 16_384, 65_536

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
    """Default thresholds of the post-processing (0.8 / 0.5 / 0.8 for panoptic, as in the paper).

    Attributes:
        score: minimum class score of a query (panoptic), or minimum final score of an instance.
        mask: minimum mask probability of a pixel (panoptic).
        overlap: minimum share of its own mask that a segment must keep (panoptic).
    """

    score: float = 0.8
    mask: float = 0.5
    overlap: float = 0.8


TASK_THRESHOLDS: dict[Task, Thresholds] = {
    "semantic": Thresholds(score=0.0),
    # The official instance result contains the best 100 instances, even with a low score.
    "instance": Thresholds(score=0.0),
    "panoptic": Thresholds(),
}


@dataclass(frozen=True)
class Backbone:
    """Facts of the Vision Transformer, read from the checkpoint."""

    family: str
    width: int
    depth: int
    heads: int
    mlp: Mlp
    registers: int
    parameters: int


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to run a model and to interpret its outputs.

    Attributes:
        name: short name of the model, for people.
        task: ``semantic``, ``instance`` or ``panoptic``.
        image_size: network input (H, W) in pixels.
        patch_size: side of a patch in pixels.
        num_queries: number of queries Q.
        num_blocks: number of last blocks that process the queries together with the patches.
        num_upscale: number of x2 upscaling steps between patch grid and mask logits.
        classes: all C classes in the order of the class logits, without "no object".
        resize: method that brings an image to ``image_size``: ``letterbox`` or ``windows``.
        thresholds: default thresholds of the post-processing.
        backbone: facts of the encoder.
        precision: precision of the graph, e.g. ``fp16``.
        batch: fixed batch size; None for a dynamic batch size.
        provenance: checkpoint SHA-256, source format, versions of tools and libraries.
        schema_version: version of this format.
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
        check_fields(SPEC, self, WHAT, FIX)
        height, width = self.image_size
        problems = []
        if height % self.patch_size or width % self.patch_size:
            problems.append(
                f"image_size must be a multiple of patch_size {self.patch_size}, "
                f"got {height}x{width}"
            )
        if 2**self.num_upscale > self.patch_size:
            problems.append(
                f"2**num_upscale must be at most patch_size {self.patch_size}, so that masks are "
                f"not larger than the image, got num_upscale {self.num_upscale}"
            )
        elif self.num_queries * self.mask_size[0] * self.mask_size[1] > MAX_MASK_LOGITS:
            problems.append(
                f"there must be at most {MAX_MASK_LOGITS} mask logits, got {self.num_queries} "
                f"masks of {self.mask_size[0]}x{self.mask_size[1]}"
            )
        if self.resize != RESIZE_RULES[self.task]:
            problems.append(
                f"resize of a {self.task} model must be {RESIZE_RULES[self.task]}, "
                f"got {self.resize}"
            )
        ids = [c.id for c in self.classes]
        if ids != list(range(len(ids))):
            problems.append(f"class ids must count from 0 without gaps, got {shown(ids)}")
        if problems:
            raise ModelFileError(f"{WHAT} is invalid: {'; '.join(problems)}.", fix=FIX)

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
    def from_json(cls, content: str | bytes) -> ModelSpec:
        """Read a spec written by :meth:`to_json`.

        Raises:
            ModelFileError: not JSON, a missing or invalid field, or another schema.
        """
        return cls.from_data(read_object(content, WHAT, FIX))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> ModelSpec:
        """As :meth:`from_json`, from parsed JSON.

        Raises:
            ModelFileError: a field is missing or invalid, or it has another schema.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION and type(version) is int:
            by = data.get("provenance")
            by = by.get("eomt_deploy", "unknown") if isinstance(by, dict) else "unknown"
            raise ModelFileError(
                f"{WHAT} has schema {shown(version)}, this eomt-deploy reads schema "
                f"{SCHEMA_VERSION}.",
                fix=f"Export the checkpoint again, or install the version that wrote it "
                f"({shown(by)}).",
            )
        check_fields(SPEC, data, WHAT, FIX)
        return cls(
            **data
            | {
                "image_size": tuple(data["image_size"]),
                "classes": tuple(
                    ClassInfo(**c | {"color": tuple(c["color"])}) for c in data["classes"]
                ),
                "thresholds": Thresholds(**data["thresholds"]),
                "backbone": Backbone(**data["backbone"]),
            }
        )


def check_class_name(name: str, where: str) -> None:
    """Check that a class name can be drawn, printed and encoded.

    Raises:
        UsageError: it cannot; the message contains ``where``, the position of the entry.
    """
    if len(name) > MAX_NAME or not is_printable(name):
        raise UsageError(
            f"The class name {shown(name)} ({where}) is not printable text of at most {MAX_NAME} "
            "characters.",
            why="Surrogates and control characters cannot be drawn or saved.",
            fix="Choose another name.",
        )


WHAT = "The model description"
FIX = "Export the checkpoint again with this version of eomt-deploy."
SIDE = integer(MIN_SIDE, MAX_SIDE)
CLASS_NAME = text(MAX_NAME, minimum=0)

SPEC = Record(
    ModelSpec,
    {
        "name": text(MAX_NAME),
        "task": one_of(*TASKS),
        "image_size": Items(SIDE, 2, 2),
        "patch_size": integer(1, 1024),
        "num_queries": integer(1, MAX_QUERIES),
        "num_blocks": integer(0, 1024),
        "num_upscale": integer(0, 10),
        "classes": Items(
            Record(
                ClassInfo,
                {
                    "id": integer(0, MAX_CLASSES - 1),
                    "name": CLASS_NAME,
                    "thing": flag(),
                    "color": Items(integer(0, 255), 3, 3),
                },
            ),
            1,
            MAX_CLASSES,
        ),
        "resize": one_of(*get_args(ResizeRule)),
        "thresholds": Record(
            Thresholds,
            {"score": share(), "mask": share(), "overlap": share()},
            optional=("score", "mask", "overlap"),
        ),
        "backbone": Record(
            Backbone,
            {
                "family": text(MAX_NAME),
                "width": integer(1, 2**20),
                "depth": integer(1, 1024),
                "heads": integer(1, 2**16),
                "mlp": one_of(*get_args(Mlp)),
                "registers": integer(0, 1024),
                "parameters": integer(0, 10**15),
            },
        ),
        "precision": one_of(*PRECISIONS, *AUTOCAST),
        "batch": optional(integer(1, MAX_BATCH)),
        "provenance": Words(1000, 100_000),
        "schema_version": One(
            str(SCHEMA_VERSION), lambda v: type(v) is int and v == SCHEMA_VERSION
        ),
    },
    optional=("precision", "batch", "provenance"),
)
"""Rules for the fields of a description."""
