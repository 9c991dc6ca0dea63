"""ModelSpec of an export, from the checkpoint, the options and the catalog."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy import __version__, catalog, licences
from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.checkpoints import Checkpoint
from eomt_deploy.checkpoints.huggingface import HUB_PREFIX
from eomt_deploy.classes import ClassList, make_classes, read_class_list, things_or_stuff
from eomt_deploy.devices import current_gpu
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.fields import printable
from eomt_deploy.precision import slower_than_fp16
from eomt_deploy.spec import (
    RESIZE_RULES,
    TASK_THRESHOLDS,
    Backbone,
    ClassInfo,
    ModelSpec,
    Task,
)

FAR_FROM_NATIVE = 1.5
"""Ratio of sides from which accuracy is known to drop without fine-tuning."""


@dataclass(frozen=True)
class Source:
    """Location of the weights, and their catalog entry, if any."""

    location: str
    entry: catalog.CatalogEntry | None


def find_source(config: ExportConfig) -> Source:
    """Resolve the checkpoint argument. An existing path takes precedence over a catalog name.

    Raises:
        UsageError: it is not a path, a URL, an ``hf://`` name or a catalog name.
    """
    entry = catalog.find_checkpoint(config.name) if config.name else None
    text = config.checkpoint
    if text.startswith(HUB_PREFIX) or is_address(text):
        return Source(text, entry or catalog.match_weights(text))
    # If it looks like a path, "no such file" is a clearer error than "not in the catalog".
    if Path(text).exists() or "/" in text or Path(text).suffix:
        return Source(text, entry)
    named = catalog.find_checkpoint(text)
    return Source(named.source, entry or named)


def describe(config: ExportConfig, source: Source, checkpoint: Checkpoint) -> ModelSpec:
    """The description that is stored in the exported model.

    Raises:
        UsageError: task, classes or size are unknown, or contradict the checkpoint.
    """
    arch = checkpoint.architecture
    task = config.task or (source.entry.task if source.entry else checkpoint.task)
    if task is None:
        raise UsageError(
            "The task of the model is unknown: the checkpoint does not store it.",
            fix="Pass --task semantic, instance or panoptic, or --name with a catalog entry.",
        )
    classes = _class_list(config, source, checkpoint, task).classes
    _check_task(config, task, classes)
    return ModelSpec(
        name=source.entry.name
        if source.entry and task == source.entry.task
        else printable(config.output.stem),
        task=task,
        image_size=image_size(config, source, checkpoint),
        patch_size=arch.patch_size,
        num_queries=arch.num_queries,
        num_blocks=arch.num_blocks,
        num_upscale=arch.num_upscale,
        classes=classes,
        resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task],
        backbone=Backbone(
            family=arch.family,
            width=arch.width,
            depth=arch.depth,
            heads=arch.heads,
            mlp=arch.mlp,
            registers=arch.registers,
            parameters=checkpoint.parameters,
        ),
        precision=config.precision,
        batch=config.batch,
        provenance={
            "checkpoint": printable(_file_name(config.checkpoint)),
            "checkpoint_sha256": checkpoint.sha256,
            **_origin(checkpoint),
            **({"licence": ", ".join(source.entry.licences)} if source.entry else {}),
            "source_format": checkpoint.source_format,
            "masked_attention": _annealing(checkpoint),
            **({"stuff_in_instance": "allowed"} if _stuff_allowed(config, task, classes) else {}),
            "eomt_deploy": __version__,
            "torch": _version("torch"),
            "onnx": _version("onnx"),
        },
    )


def image_size(config: ExportConfig, source: Source, checkpoint: Checkpoint) -> tuple[int, int]:
    """Network input size (H, W) in pixels.

    The first that is known: requested size; size in the catalog, unless the file stores its trained
    size; ``native_size`` option; trained size of the checkpoint.

    Raises:
        UsageError: none of them is known.
    """
    if config.size:
        check_patches(config.size, checkpoint.architecture.patch_size)
        return config.size
    if source.entry and not checkpoint.trained_size:
        return source.entry.size
    size = config.native_size or native_size(checkpoint)
    if size is None:
        raise UsageError(
            "The trained size cannot be inferred from the checkpoint.",
            why="Rotary position embeddings do not depend on the size."
            if checkpoint.architecture.rope_theta
            else "Its position embeddings do not form a square grid.",
            fix="Pass the trained size: --native-size HxW.",
        )
    return size


def check_patches(size: tuple[int, int], patch: int) -> None:
    """Check that an input size (H, W) consists of complete patches.

    Raises:
        UsageError: it does not; the message has the nearest sizes that do.
    """
    if not (size[0] % patch or size[1] % patch):
        return
    lower, upper = (
        f"{max(patch, height)}x{max(patch, width)}"
        for height, width in (
            (size[0] // patch * patch, size[1] // patch * patch),
            (-(-size[0] // patch) * patch, -(-size[1] // patch) * patch),
        )
    )
    if size[0] == size[1]:
        lower, upper = lower.partition("x")[0], upper.partition("x")[0]
    raise UsageError(
        f"The size {size[0]}x{size[1]} is not a multiple of {patch}, the size of the model's "
        "patches.",
        fix=f"Use --size {lower}" + (f" or --size {upper}." if upper != lower else "."),
    )


def native_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Trained (H, W) in pixels, if it can be inferred from the checkpoint."""
    if checkpoint.trained_size:
        return checkpoint.trained_size
    grid, patch = checkpoint.native_grid, checkpoint.architecture.patch_size
    return None if grid is None else (grid[0] * patch, grid[1] * patch)


def native_grid(size: tuple[int, int], checkpoint: Checkpoint) -> tuple[int, int]:
    """Patch grid (rows, columns) of the trained size that the user passed.

    Raises:
        UsageError: the grid does not have as many patches as the checkpoint has positions.
    """
    patch = checkpoint.architecture.patch_size
    rows, columns = size[0] // patch, size[1] // patch
    position = checkpoint.tensors.shapes.get("backbone.pos_embed")
    tokens = rows * columns if position is None else position.shape[1]
    if (rows * patch, columns * patch) != size or rows * columns != tokens:
        raise UsageError(
            f"--native-size {size[0]}x{size[1]} has {size[0] / patch:g}x{size[1] / patch:g} "
            f"patches, but the checkpoint has {tokens} position embeddings.",
            fix="Pass the size in pixels that the checkpoint was trained at.",
        )
    return rows, columns


def warnings(
    config: ExportConfig, source: Source, checkpoint: Checkpoint, spec: ModelSpec
) -> list[str]:
    """Warnings about an export that is possible, but may not be what the user expects."""
    notes = list(checkpoint.notes)
    if source.entry:
        notes += licences.notes(source.entry.name, source.entry.licences)
    trained = source.entry.task if source.entry else checkpoint.task
    if trained not in (None, spec.task):
        name = source.entry.name if source.entry else _file_name(config.checkpoint)
        notes.append(
            f"{name} was trained for {trained} segmentation, but is exported for {spec.task} "
            "segmentation, as requested."
        )
    if note := _class_list(config, source, checkpoint, spec.task).note:
        notes.append(note)
    entry = source.entry
    if entry and config.classes and _names(spec.classes) != _names(entry.class_list()):
        notes.append(
            f"The classes of {config.classes} replace those of the catalog, {entry.classes}. If "
            "these weights were not trained on them, the names in the results are wrong."
        )
    notes += _task_notes(spec)
    if checkpoint.attn_mask_probs is None:
        notes.append("The checkpoint does not store whether masked attention was annealed to 0.")
    elif any(checkpoint.attn_mask_probs):
        notes.append("Masked attention was NOT annealed to 0. Expect a much lower accuracy.")
    gpu = current_gpu()
    notes += slower_than_fp16(config.precision, gpu.compute_capability if gpu else None)
    native = config.native_size or native_size(checkpoint)
    if native:
        ratios = [max(a / b, b / a) for a, b in zip(spec.image_size, native, strict=True)]
        if max(ratios) >= FAR_FROM_NATIVE:
            notes.append(
                f"The size {spec.image_size[0]}x{spec.image_size[1]} is far from the trained size "
                f"{native[0]}x{native[1]}. Expect a lower accuracy without fine-tuning."
            )
    return notes


def check_annealed(checkpoint: Checkpoint, allow: bool) -> None:
    """Reject weights that still need masked attention.

    Raises:
        CheckpointError: ``attn_mask_probs`` are not all 0, and ``allow`` is not set.
    """
    probabilities = checkpoint.attn_mask_probs
    if allow or probabilities is None or not any(probabilities):
        return
    shown = ", ".join(f"{p:g}" for p in probabilities)
    raise CheckpointError(
        f"Masked attention was not annealed to 0: attn_mask_probs is [{shown}].",
        why="The exported graph does not have masked attention. Without annealing, the PQ of the "
        "paper's model drops from 56.0 to 27.4 (table 7).",
        fix="Continue the training until all are 0. If the model was annealed (a Hugging Face "
        "model may still store ones), pass --allow-unannealed.",
    )


def _class_list(
    config: ExportConfig, source: Source, checkpoint: Checkpoint, task: Task
) -> ClassList:
    """The class list, from the most reliable source that has one.

    Raises:
        UsageError: no source has one, or it does not have as many classes as the checkpoint.
    """
    count = checkpoint.architecture.num_classes
    if config.classes:
        origin = str(config.classes)
        known = {} if config.classes.exists() else catalog.class_lists()
        if origin in known:
            found = ClassList(known[origin], origin)
        elif not config.classes.exists() and origin == config.classes.stem:
            near = difflib.get_close_matches(origin.lower(), known, n=3, cutoff=0.5)
            raise UsageError(
                f"{origin!r} is neither a file nor a class list of the catalog.",
                fix=(f"Did you mean {', '.join(near)}? " if near else "")
                + f"Class lists: {', '.join(known)}; or pass a JSON file.",
            )
        else:
            found = read_class_list(config.classes, task)
    elif checkpoint.class_names and checkpoint.things and task == checkpoint.task:
        # The list in the file is more reliable than the catalog.
        pairs = zip(checkpoint.class_names, checkpoint.things, strict=True)
        entries = [{"name": name, "thing": thing} for name, thing in pairs]
        found = ClassList(make_classes(entries, "the checkpoint"), "the checkpoint")
    elif source.entry:
        found = ClassList(source.entry.class_list(), f"catalog entry {source.entry.name}")
    elif checkpoint.class_names and task != "panoptic":
        # Only a panoptic model mixes things and stuff.
        classes = things_or_stuff(checkpoint.class_names, thing=task == "instance")
        found = ClassList(classes, "config.json")
    else:
        raise UsageError(
            f"The names of the {count} classes are unknown"
            + (", or which of them are things." if checkpoint.class_names else "."),
            fix="Pass --name with a catalog entry, or --classes with a list of the catalog "
            f"({', '.join(catalog.class_lists())}) or a JSON file, in the order of the class "
            'logits: [{"name": "road", "thing": false}, …].',
        )
    if len(found.classes) != count:
        fitting = [name for name, known in catalog.class_lists().items() if len(known) == count]
        raise UsageError(
            f"{found.origin} has {len(found.classes)} classes, but the checkpoint has {count}.",
            fix="List all classes in the order of the class logits, without 'no object'."
            + (f" Class lists with {count} classes: {', '.join(fitting)}." if fitting else ""),
        )
    return found


def _check_task(config: ExportConfig, task: Task, classes: tuple[ClassInfo, ...]) -> None:
    """Reject stuff classes in an instance model.

    Raises:
        UsageError: there are some without ``allow_stuff``, or it is set for another task.
    """
    stuff = [info.name for info in classes if not info.thing]
    if task != "instance" and config.allow_stuff:
        raise UsageError(f"--allow-stuff has no effect on a {task} model.", fix="Leave it out.")
    if task == "instance" and stuff and not config.allow_stuff:
        raise UsageError(
            f"An instance model cannot have stuff classes, but {len(stuff)} of the {len(classes)} "
            f"classes are stuff: {', '.join(stuff[:3])}{', …' if len(stuff) > 3 else ''}.",
            why="An instance model is trained on things only, so the checkpoint or the class list "
            "may be of a semantic or panoptic model.",
            fix="Pass the --task that the checkpoint was trained for, or correct the class list. "
            "If the list is correct, pass --allow-stuff.",
        )


def _stuff_allowed(config: ExportConfig, task: Task, classes: tuple[ClassInfo, ...]) -> bool:
    return task == "instance" and config.allow_stuff and not all(info.thing for info in classes)


def _names(classes: tuple[ClassInfo, ...]) -> list[str]:
    return [info.name for info in classes]


def _task_notes(spec: ModelSpec) -> list[str]:
    """A warning if the class list seems to be of another task."""
    things, count = sum(info.thing for info in spec.classes), len(spec.classes)
    if spec.task == "panoptic" and things in (0, count):
        kind, other = ("a thing", "semantic") if things == 0 else ("stuff", "instance")
        return [
            f"None of the {count} classes is {kind}, as in the class list of a {other} model. If "
            f"the checkpoint was trained for that task, pass --task {other}."
        ]
    if spec.task == "instance" and things < count:
        return [f"{count - things} of the {count} classes are stuff (allowed by --allow-stuff)."]
    return []


def _origin(checkpoint: Checkpoint) -> dict[str, str]:
    """Provenance of the weights: the revision, and the choices within the file."""
    facts = {
        "checkpoint_revision": checkpoint.revision,
        "weights_key": checkpoint.weights_key,
        "stripped_from_keys": checkpoint.stripped,
    }
    return {name: value for name, value in facts.items() if value}


def _file_name(checkpoint: str) -> str:
    """The file name of a path or URL, without the query, which may contain a secret."""
    return Path(without_secrets(checkpoint)).name


def _annealing(checkpoint: Checkpoint) -> str:
    if checkpoint.attn_mask_probs is None:
        return "unknown"
    return "not annealed" if any(checkpoint.attn_mask_probs) else "annealed"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
