"""The configuration of a batch run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.errors import UsageError

SHARD_SIZE = 256
"""Default number of images per shard."""
MAX_SHARD_SIZE = 100_000
"""A shard is held in memory before it is written."""


@dataclass(frozen=True)
class BatchConfig:
    """What :func:`eomt_deploy.batch.run` does.

    Attributes:
        model: model file; on a cluster it has the same path on each machine.
        sources: image files, folders, globs, ``@list.txt``, Parquet tables with a column ``path``,
            and URIs such as ``s3://bucket/folder`` or ``hf://datasets/owner/name``.
        output: folder or URI that receives the results.
        backend: name of the backend; None selects it by the suffix of the model.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: number of CPU threads of each model; None takes all cores, up to 8.
        arithmetic: see :func:`eomt_deploy.open_engine`.
        max_pixels: see :func:`eomt_deploy.load_image`.
        score_threshold: see :meth:`eomt_deploy.Processor.postprocess`.
        mask_threshold: as ``score_threshold``.
        overlap_threshold: as ``score_threshold``.
        labels: also write a label image (PNG) of each image; not for instance models.
        overlays: also write an overlay of each image.
        shard_size: number of images per shard. A shard is the unit that is written, and repeated if
            the run was stopped in the middle of it.
        concurrency: number of models that run at the same time; None takes one per GPU, or as many
            as fit on the cores.
        address: address of a Ray cluster; None starts Ray on this machine only.
        max_errors: number of images without a result that stops the run if it is exceeded; None
            never stops it.
        overwrite: also replace files that eomt-deploy did not write.
    """

    model: Path
    sources: tuple[str, ...]
    output: str
    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    arithmetic: str | None = None
    max_pixels: int | None = None
    score_threshold: float | None = None
    mask_threshold: float | None = None
    overlap_threshold: float | None = None
    labels: bool = False
    overlays: bool = False
    shard_size: int = SHARD_SIZE
    concurrency: int | None = None
    address: str | None = None
    max_errors: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("threads", self.threads, 1),
            ("shard_size", self.shard_size, 1),
            ("concurrency", self.concurrency, 1),
            ("max_errors", self.max_errors, 0),
        ):
            if value is not None and value < least:
                raise UsageError(
                    f"`{name}` must be at least {least}, got {value}.",
                    fix=f"Pass {least} or more, or leave it out for the default.",
                )
        if self.shard_size > MAX_SHARD_SIZE:
            raise UsageError(
                f"`shard_size` must be at most {MAX_SHARD_SIZE}, got {self.shard_size}.",
                why="The rows of a shard are held in memory until it is written.",
                fix="Pass a smaller number, e.g. 1000.",
            )
