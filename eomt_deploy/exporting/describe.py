"""Checkpoint + what the user said + catalog -> ModelSpec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eomt_deploy import __version__, catalog
from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.checkpoints import Checkpoint
from eomt_deploy.checkpoints.huggingface import HUB_PREFIX
from eomt_deploy.classes import ClassList, make_classes, read_class_list, things_or_stuff
from eomt_deploy.errors import CheckpointError, UsageError
from eomt_deploy.exporting.config import ExportConfig
from eomt_deploy.fields import printable
from eomt_deploy.spec import (
    RESIZE_RULES,
    TASK_THRESHOLDS,
    Backbone,
    ClassInfo,
    ModelSpec,
    Task,
)

FAR_FROM_NATIVE = 1.5
"""Ratio of sides from which accuracy is known to suffer without fine-tuning."""


@dataclass(frozen=True)
class Source:
    """Where the weights are, and the catalog entry that knows them, if any."""

    location: str
    entry: catalog.CatalogEntry | None


def find_source(config: ExportConfig) -> Source:
    """Resolve the checkpoint argument: an existing path wins over a catalog name.

    Raises:
        UsageError: it is neither a path, an ``hf://`` name nor in the catalog.
    """
    entry = catalog.find_checkpoint(config.name) if config.name else None
    text = config.checkpoint
    if text.startswith(HUB_PREFIX) or is_address(text):
        return Source(text, entry or catalog.match_weights(text))
    # What looks like a path is a path: "no such file" is the clearer error then.
    if Path(text).exists() or "/" in text or Path(text).suffix:
        return Source(text, entry)
    named = catalog.find_checkpoint(text)
    return Source(named.source, entry or named)


def describe(config: ExportConfig, source: Source, checkpoint: Checkpoint) -> ModelSpec:
    """The description that travels with the exported model.

    Raises:
        UsageError: task or classes are unknown, or contradict the checkpoint.
    """
    arch = checkpoint.architecture
    task = config.task or (source.entry.task if source.entry else checkpoint.task)
    if task is None:
        raise UsageError(
            "The checkpoint does not say which task it was trained for.",
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
            "source_format": checkpoint.source_format,
            "masked_attention": _annealing(checkpoint),
            **({"stuff_in_instance": "allowed"} if _stuff_allowed(config, task, classes) else {}),
            "eomt_deploy": __version__,
            "torch": _version("torch"),
            "onnx": _version("onnx"),
        },
    )


def image_size(config: ExportConfig, source: Source, checkpoint: Checkpoint) -> tuple[int, int]:
    """Network input (H, W): asked for, else what the file says, else the catalog's, else what the
    position embeddings are for."""
    if config.size:
        return config.size
    if source.entry and not checkpoint.trained_size:
        return source.entry.size
    size = config.native_size or native_size(checkpoint)
    if size is None:
        raise UsageError(
            "The trained size cannot be read off the checkpoint.",
            why="Rotary position embeddings are made for any size."
            if checkpoint.architecture.rope_theta
            else "Its position embeddings are no square.",
            fix="Pass --native-size HxW, the size that it was trained at.",
        )
    return size


def native_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Trained (H, W) in pixels, where the checkpoint tells."""
    if checkpoint.trained_size:
        return checkpoint.trained_size
    grid, patch = checkpoint.native_grid, checkpoint.architecture.patch_size
    return None if grid is None else (grid[0] * patch, grid[1] * patch)


def native_grid(size: tuple[int, int], checkpoint: Checkpoint) -> tuple[int, int]:
    """Patch grid of the trained size that the user names.

    Raises:
        UsageError: it is no grid of as many patches as the checkpoint has positions for.
    """
    patch = checkpoint.architecture.patch_size
    rows, columns = size[0] // patch, size[1] // patch
    position = checkpoint.tensors.shapes.get("backbone.pos_embed")
    tokens = rows * columns if position is None else position.shape[1]
    if (rows * patch, columns * patch) != size or rows * columns != tokens:
        raise UsageError(
            f"--native-size {size[0]}x{size[1]} is a grid of {size[0] / patch:g}x"
            f"{size[1] / patch:g} patches; the checkpoint has {tokens} position embeddings."
        )
    return rows, columns


def warnings(
    config: ExportConfig, source: Source, checkpoint: Checkpoint, spec: ModelSpec
) -> list[str]:
    """What the user should know although nothing is wrong."""
    notes = list(checkpoint.notes)
    trained = source.entry.task if source.entry else checkpoint.task
    if trained not in (None, spec.task):
        name = source.entry.name if source.entry else _file_name(config.checkpoint)
        notes.append(
            f"{name} was trained as a {trained} model and is exported as a {spec.task} one, as "
            "asked."
        )
    if note := _class_list(config, source, checkpoint, spec.task).note:
        notes.append(note)
    notes += _task_notes(spec)
    if checkpoint.attn_mask_probs is None:
        notes.append("The checkpoint does not say whether masked attention was annealed away.")
    elif any(checkpoint.attn_mask_probs):
        notes.append("Masked attention was NOT annealed away; expect far lower accuracy.")
    native = config.native_size or native_size(checkpoint)
    if native:
        ratios = [max(a / b, b / a) for a, b in zip(spec.image_size, native, strict=True)]
        if max(ratios) >= FAR_FROM_NATIVE:
            notes.append(
                f"{spec.image_size[0]}x{spec.image_size[1]} is far from the trained "
                f"{native[0]}x{native[1]}; expect lower accuracy without fine-tuning."
            )
    return notes


def check_annealed(checkpoint: Checkpoint, allow: bool) -> None:
    """Refuse weights that still need masked attention.

    Raises:
        CheckpointError: ``attn_mask_probs`` is not zero and ``allow`` is not set.
    """
    probabilities = checkpoint.attn_mask_probs
    if allow or probabilities is None or not any(probabilities):
        return
    shown = ", ".join(f"{p:g}" for p in probabilities)
    raise CheckpointError(
        f"Masked attention was not annealed away: attn_mask_probs is [{shown}], not all 0.",
        why="The exported graph has no masked attention. Without annealing the paper's model "
        "falls from 56.0 to 27.4 PQ (table 7).",
        fix="Train on until it is 0, or pass --allow-unannealed if you know better "
        "(a Hugging Face model that was annealed may still store ones).",
    )


def _class_list(
    config: ExportConfig, source: Source, checkpoint: Checkpoint, task: Task
) -> ClassList:
    """The classes, from the surest place that has them.

    Raises:
        UsageError: no place has them, or not as many as the checkpoint.
    """
    count = checkpoint.architecture.num_classes
    if config.classes:
        origin = str(config.classes)
        known = {} if config.classes.exists() else catalog.class_lists()
        if origin in known:
            found = ClassList(known[origin], origin)
        else:
            found = read_class_list(config.classes, task)
    elif checkpoint.class_names and checkpoint.things and task == checkpoint.task:
        # The file's own, which is surer than what the catalog says of it.
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
            fix='Pass --classes classes.json: [{"name": "road", "thing": false}, …] in the order '
            f"of the class logits, the name of a list ({', '.join(catalog.class_lists())}), or "
            "--name with a catalog entry.",
        )
    if len(found.classes) != count:
        raise UsageError(
            f"{found.origin} has {len(found.classes)} classes, the checkpoint has {count}.",
            fix="List every class in the order of the class logits, without 'no object'.",
        )
    return found


def _check_task(config: ExportConfig, task: Task, classes: tuple[ClassInfo, ...]) -> None:
    """Refuse stuff in an instance model.

    Raises:
        UsageError: there is some and ``allow_stuff`` is not set, or it is set for another task.
    """
    stuff = [info.name for info in classes if not info.thing]
    if task != "instance" and config.allow_stuff:
        raise UsageError(f"--allow-stuff does nothing for a {task} model.", fix="Leave it out.")
    if task == "instance" and stuff and not config.allow_stuff:
        raise UsageError(
            f"{len(stuff)} of the {len(classes)} classes are stuff, which an instance model does "
            f"not have: {', '.join(stuff[:3])}{', …' if len(stuff) > 3 else ''}.",
            why="An instance model is trained on things alone, so the checkpoint or the class "
            "list may belong to a semantic or panoptic one.",
            fix="Pass the --task that the checkpoint was trained for, correct the class list, or "
            "pass --allow-stuff if it is right.",
        )


def _stuff_allowed(config: ExportConfig, task: Task, classes: tuple[ClassInfo, ...]) -> bool:
    return task == "instance" and config.allow_stuff and not all(info.thing for info in classes)


def _task_notes(spec: ModelSpec) -> list[str]:
    """Where the class list looks like one of another task."""
    things, count = sum(info.thing for info in spec.classes), len(spec.classes)
    if spec.task == "panoptic" and things in (0, count):
        kind, other = ("a thing", "semantic") if things == 0 else ("stuff", "instance")
        return [
            f"None of the {count} classes is {kind}, as in a list for a {other} model. If the "
            f"checkpoint was trained for that task, export it with --task {other}."
        ]
    if spec.task == "instance" and things < count:
        return [f"{count - things} of the {count} classes are stuff, as --allow-stuff allows."]
    return []


def _origin(checkpoint: Checkpoint) -> dict[str, str]:
    """What of the checkpoint was taken, where there was something to choose."""
    facts = {
        "checkpoint_revision": checkpoint.revision,
        "weights_key": checkpoint.weights_key,
        "stripped_from_keys": checkpoint.stripped,
    }
    return {name: value for name, value in facts.items() if value}


def _file_name(checkpoint: str) -> str:
    """Of a path, or of an address, whose query may hold a secret."""
    return Path(without_secrets(checkpoint)).name


def _annealing(checkpoint: Checkpoint) -> str:
    if checkpoint.attn_mask_probs is None:
        return "unknown"
    return "not annealed" if any(checkpoint.attn_mask_probs) else "annealed"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
