"""`eomt-deploy compare`: compare two models on the same images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eomt_deploy import catalog
from eomt_deploy.addresses import without_secrets
from eomt_deploy.backends import BACKENDS
from eomt_deploy.cli.console import (
    bar,
    ending_with,
    say,
    say_remarks,
    stderr,
    warn,
    write_json,
)
from eomt_deploy.cli.options import (
    Backend,
    BaseWeights,
    Device,
    Insecure,
    Limit,
    MaxPixels,
    Overwrite,
    Split,
)
from eomt_deploy.errors import ImageError, MissingDependencyError, UsageError, VerificationError
from eomt_deploy.files import PICTURE_FORMATS
from eomt_deploy.outputs import check_outputs
from eomt_deploy.units import counted

if TYPE_CHECKING:
    from eomt_deploy.evaluation.compare import Comparison
    from eomt_deploy.evaluation.truth import Sample
    from eomt_deploy.segmenter import Segmenter

MODEL_SUFFIXES = tuple({suffix for entry in BACKENDS.values() for suffix in entry.suffixes})


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Model file or checkpoint.")],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="Model file or checkpoint; not both checkpoints.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGES", help="Image files, folders or globs; or use --data."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Labelled data instead of images: also compares the scores."),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Exit with code 4 if more than this percentage of classes or masks differs, e.g. "
            "0.5."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File for overlays of the image that differs most: .png or .jpg."
        ),
    ] = None,
    backend: Backend = None,
    device: Device = None,
    max_pixels: MaxPixels = None,
    base_weights: BaseWeights = None,
    overwrite: Overwrite = False,
    weights_key: Annotated[
        str | None,
        typer.Option(
            help="Weights to take from the checkpoint, e.g. state_dict (default: those of the "
            "export)."
        ),
    ] = None,
    insecure: Insecure = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file (- for stdout).")
    ] = None,
) -> None:
    """Compare two models: logits, labels and masks.

    With labelled data, also compare their scores.
    """
    from eomt_deploy.evaluation import open_dataset
    from eomt_deploy.evaluation.compare import compare as run_comparison
    from eomt_deploy.evaluation.truth import unlabelled
    from eomt_deploy.image_search import search_images

    if bool(images) == bool(data):
        raise UsageError(
            "compare needs either images or --data, got " + ("both." if images else "neither."),
            fix="Pass images after the two models, or --data with a labelled data set.",
        )
    if split and not data:
        raise UsageError("--split needs --data.", fix="Add --data, or leave --split out.")
    if limit is not None and limit < 1:
        raise UsageError(
            f"--limit must be at least 1, got {limit}.",
            fix="Pass 1 or more, or leave --limit out for all images.",
        )
    if tolerance is not None and not 0 <= tolerance <= 100:
        raise UsageError(
            f"--tolerance must be between 0 and 100 percent, got {tolerance:g}.",
            fix="Pass a percentage such as 0.5.",
        )
    if output and output.suffix.lower() not in PICTURE_FORMATS:
        raise UsageError(f"{output} is not an image file.", fix="Use the suffix .png or .jpg.")
    check_outputs(
        {"-o": output, "--json": json},
        inputs=[a, b, *map(Path, images or []), *(data or [])],
        overwrite=overwrite,
    )
    found = search_images(images or [])
    first, second = _open(a, b, backend, device, base_weights, weights_key, insecure)
    with ending_with(found.note), first, second:
        for path, segmenter in ((a, first), (b, second)):
            say_remarks(segmenter.engine, str(path))
        if data:
            dataset = open_dataset(data, first.spec, split=split, max_pixels=max_pixels)
            samples = dataset.samples[:limit]
        else:
            samples = unlabelled(found.paths[:limit], max_pixels=max_pixels)
        with bar("comparing", len(samples)) as progress:
            result = run_comparison(first, second, samples, labelled=bool(data), progress=progress)
        for remark in dataset.remarks() if data else ():
            warn(remark)
        for _, error in result.left_out:
            say(f"error: {error}", stderr, "bold red")
        if json:
            write_json(json, result.to_dict())
        if str(json) != "-":
            _show(result, _name(a), _name(b))
        if output:
            _draw(first, second, samples, result, output)
    if tolerance is not None:
        _check(result, tolerance, _name(a), _name(b))
    if result.left_out:
        raise ImageError(
            f"{len(result.left_out)} of {counted(len(samples), 'image')} could not be read and "
            "left out; see the errors above.",
            fix="Repair or remove these images, and compare again.",
        )


def _check(result: Comparison, tolerance: float, a: str, b: str) -> None:
    pixels = 100 * (1 - result.label_agreement)
    # Two objects that are merged into one change masks, but not the class of any pixel.
    masks = 0.0 if result.mask_iou is None else 100 * (1 - result.mask_iou)
    if not max(pixels, masks) <= tolerance:
        raise VerificationError(
            f"{b} differs from {a} in {pixels:.3f}% of the pixels' classes and {masks:.3f}% of the "
            f"masks (1 - IoU); {tolerance:g}% is allowed.",
            fix="Use a higher precision, or a larger --tolerance if this difference is "
            "acceptable; -o shows the image that differs most.",
        )


def _location(path: Path) -> str:
    """An argument as it was written: pathlib joins the slashes of an address."""
    return re.sub(r"^(hf|https?):/+", r"\1://", str(path), flags=re.IGNORECASE)


def _name(path: Path) -> str:
    """An argument as it may be shown: without the secrets of an address."""
    return without_secrets(_location(path))


def _open(
    a: Path,
    b: Path,
    backend: str | None,
    device: str | None,
    base_weights: str | None,
    weights_key: str | None,
    insecure: bool,
) -> tuple[Segmenter, Segmenter]:
    from eomt_deploy.segmenter import Segmenter

    exported = [path.suffix.lower() in MODEL_SUFFIXES for path in (a, b)]
    if not any(exported):
        raise UsageError(
            f"Neither {_name(a)} nor {_name(b)} is an exported model.",
            why="Task, classes and size cannot be inferred from a checkpoint alone.",
            fix="Export one of them first.",
        )
    if all(exported):
        for option, used in (("--weights-key", weights_key is not None), ("--insecure", insecure)):
            if used:
                raise UsageError(
                    f"{option} has no effect here: neither model is a checkpoint.",
                    fix="Leave it out.",
                )
        first, second = (Segmenter(path, backend=backend, device=device) for path in (a, b))
        return first, second
    try:
        from eomt_deploy.exporting.reference import TorchEngine
    except ImportError as error:
        raise MissingDependencyError(
            f"Running a checkpoint needs {error.name}, which is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error
    model, checkpoint = (a, b) if exported[0] else (b, a)
    if not checkpoint.exists() and str(checkpoint) in catalog.checkpoints():
        location = catalog.find_checkpoint(str(checkpoint)).source
    else:
        location = _location(checkpoint)
    known = Segmenter(model, backend=backend, device=device)
    engine = TorchEngine(location, known.spec, base_weights, weights_key, insecure)
    reference = Segmenter(engine)
    for note in engine.notes:
        warn(note)
    return (known, reference) if exported[0] else (reference, known)


def _show(result: Comparison, a: str, b: str) -> None:
    logits = (
        "different shapes, not comparable"
        if result.logit_max is None
        else f"largest {result.logit_max:.2e}, mean {result.logit_mean:.2e} of the largest logit"
    )
    lines = [
        f"{b} against {a} on {counted(result.images, 'image')}",
        f"  logit error      {logits}",
        f"  label agreement  {result.label_agreement:.4%} of the pixels",
        "  mask IoU         "
        + ("no masks" if result.mask_iou is None else f"{result.mask_iou:.4%}"),
        f"  {result.metric} with the first as truth: "
        + ("no segments" if result.score is None else f"{result.score:.3f}"),
    ]
    if found := result.labelled:
        lines.append(
            f"  {found.metric} against the labels: {found.a:.3f} -> {found.b:.3f}, difference "
            f"{found.difference:+.3f} "
            + (
                "(no interval from one image)"
                if found.low is None
                else f"(95% interval {found.low:+.3f} to {found.high:+.3f})"
            )
        )
    for line in lines:
        say(line)


def _draw(
    first: Segmenter,
    second: Segmenter,
    samples: tuple[Sample, ...],
    result: Comparison,
    output: Path,
) -> None:
    from eomt_deploy.drawing import side_by_side
    from eomt_deploy.evaluation.compare import difference_picture
    from eomt_deploy.files import save_picture

    left_out = {position for position, _ in result.left_out}
    compared = [sample for index, sample in enumerate(samples) if index not in left_out]
    agreement = [share for _, share in result.per_image]
    worst = compared[agreement.index(min(agreement))]
    parts = difference_picture(first, second, worst)
    save_picture(side_by_side([part.overlay() for part in parts]), output)
    say(
        f"wrote {output}: {worst.name}, overlays of the first, the second and their difference",
        stderr,
    )
