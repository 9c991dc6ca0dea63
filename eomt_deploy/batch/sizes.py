"""How many workers run, and what each of them gets."""

from __future__ import annotations

from dataclasses import dataclass

MAX_THREADS = 8
"""Default maximum number of CPU threads of a model: more do not make one network much faster."""
MAX_DECODERS = 16
IMAGES_PER_CALL = 4
"""Images that one call of a decoder or writer processes: enough to hide the cost of a call."""


@dataclass(frozen=True)
class Sizes:
    """The workers of a run.

    Attributes:
        models: number of model actors.
        threads: CPU threads of each model.
        decoders: decoders of each model actor.
        writers: writers of each model actor.
        gpus: GPUs that each model actor reserves, 0 or 1.
        cpus: cores that each model actor reserves for itself, its decoders and its writers.
    """

    models: int
    threads: int
    decoders: int
    writers: int
    gpus: int
    cpus: int


def choose_sizes(
    cores: int, gpus: int, *, threads: int | None, concurrency: int | None, nodes: int = 1
) -> Sizes:
    """Sizes for machines with these resources.

    A model on a GPU leaves its cores to the decoders and writers. A model on the CPU needs the
    cores itself: a decoder and a writer run beside it, and the system shares the time.

    Args:
        cores: usable logical cores of all machines together.
        gpus: GPUs of all machines together; 0 runs the models on the CPU.
        threads: threads of each model; None selects them.
        concurrency: number of models; None selects it.
        nodes: number of machines, which are assumed to be equal.
    """
    if gpus:
        models = concurrency or gpus
        share = max(1, cores // max(gpus, models))
        decoders = min(MAX_DECODERS, max(1, share - 2))
        return Sizes(models, threads or min(share, 4), decoders, max(1, share // 8), 1, share)
    per_node = max(1, cores // nodes)
    if threads is None:
        share = per_node if concurrency is None else cores // concurrency
        threads = max(1, min(MAX_THREADS, share))
    models = concurrency or nodes * max(1, per_node // threads)
    helpers = max(1, threads // 4)
    return Sizes(models, threads, helpers, helpers, 0, min(threads, per_node))
