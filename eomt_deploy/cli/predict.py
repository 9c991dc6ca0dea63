"""`eomt-deploy predict`: photos in, pictures and results out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eomt_deploy.cli.console import bar, check_report, say, say_remarks, stderr, stdout, write_json
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.files import check_writable, save_picture
from eomt_deploy.result import Segmentation
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import IMAGE_SUFFIXES, find_images
from eomt_deploy.spec import ModelSpec

FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".json", ".npz")
OTHER_SUFFIXES = (IMAGE_SUFFIXES | {".gif", ".csv", ".txt", ".pdf", ".mp4"}) - set(FILE_SUFFIXES)
Predict = Callable[[Sequence[Path]], Iterator[Segmentation | ImageError]]
RESULT_FOLDERS = ("overlay", "labels")


def predict(
    artifact: Annotated[Path, typer.Argument(help="An exported model.")],
    images: Annotated[list[str], typer.Argument(help="Photos, folders or globs.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="A folder; for one photo also .png .jpg .json .npz."),
    ],
    backend: Annotated[
        str | None, typer.Option(help="Run-time by name; emulation shows a GPU's low precision.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; best by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    mask_threshold: Annotated[float | None, typer.Option(help="0 to 1 (panoptic).")] = None,
    overlap_threshold: Annotated[float | None, typer.Option(help="0 to 1 (panoptic).")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write predictions.json here (- for stdout).")
    ] = None,
) -> None:
    """Segment photos.

    A folder gets overlay/*.jpg (pictures), labels/*.png (semantic class ids, or COCO panoptic
    ids) and predictions.json. A single file is written by its suffix.
    """
    as_file = output.suffix.lower() in FILE_SUFFIXES and not output.is_dir()
    if as_file and json:
        raise UsageError("--json goes with a folder.", fix=f"Write one of the two: {output}.")
    if not as_file and output.suffix.lower() in OTHER_SUFFIXES and not output.is_dir():
        raise UsageError(
            f"Results are not written as {output.suffix}.",
            fix=f"Use a folder, or for one photo {', '.join(FILE_SUFFIXES)}.",
        )
    if json:
        check_report(json, artifact)
    paths = _without_results(find_images(images), output)
    with Segmenter(artifact, backend=backend, device=device, threads=threads) as segmenter:
        segmenter.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        say(segmenter.engine.where, stderr)
        say_remarks(segmenter.engine)
        run = partial(
            segmenter.stream,
            score_threshold=score_threshold,
            mask_threshold=mask_threshold,
            overlap_threshold=overlap_threshold,
            return_errors=True,
        )
        if as_file:
            _predict_file(run, paths, output)
        else:
            _predict_folder(run, paths, output, segmenter.spec, json)


def _without_results(paths: list[Path], output: Path) -> list[Path]:
    """Leave out what an earlier run wrote into the output folder, and say so."""
    written = [Path(os.path.abspath(output)) / name for name in RESULT_FOLDERS]
    photos = [p for p in paths if not any(f in Path(os.path.abspath(p)).parents for f in written)]
    if len(photos) < len(paths):
        say(f"left out {len(paths) - len(photos)} earlier results in {output}", stderr)
    if not photos:
        raise ImageError(f"All {len(paths)} images are earlier results in {output}.")
    return photos


def _predict_file(run: Predict, paths: Sequence[Path], output: Path) -> None:
    if len(paths) > 1:
        raise UsageError(
            f"{len(paths)} photos do not fit into one file, {output}.", fix="Name a folder."
        )
    check_writable(output)
    result = next(run(paths))
    if isinstance(result, ImageError):
        raise result
    result.save(output)
    say(f"wrote {output}: {result}")


def _predict_folder(
    run: Predict, paths: Sequence[Path], output: Path, spec: ModelSpec, json: Path | None
) -> None:
    summary_file = output / "predictions.json"
    check_writable(summary_file)
    entries: list[dict[str, Any]] = []
    with bar("predicting", len(paths)) as progress:
        found = zip(paths, _output_names(paths), run(paths), strict=True)
        for index, (path, name, result) in enumerate(found):
            if isinstance(result, ImageError):
                say(f"error: {result}", stderr, "bold red")
            else:
                entries.append(_write(result, output, name, len(entries), path))
            progress(index + 1)
    summary = {
        "model": spec.name,
        "task": spec.task,
        "checkpoint_sha256": spec.provenance.get("checkpoint_sha256"),
        "categories": [
            {"id": c.id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
            for c in spec.classes
        ],
        "images": entries,
    }
    write_json(summary_file, summary)
    if json:
        write_json(json, summary)
    say(
        f"wrote {len(entries)} of {len(paths)} results to {output}/",
        stderr if str(json) == "-" else stdout,
    )
    if failed := len(paths) - len(entries):
        raise ImageError(f"{failed} of {len(paths)} images could not be read; see the lines above.")


def _output_names(paths: Sequence[Path]) -> list[str]:
    """Where results go below the output folder: the photos' own names, kept apart.

    ``x.jpg`` gives ``x``; where several photos would give the same, all keep their suffix.
    """
    # abspath, not resolve: "a/../b" must not climb out of the output folder, but a linked
    # photo keeps the name that the user gave it.
    absolute = [Path(os.path.abspath(path)) for path in paths]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    relative = [path.relative_to(common) for path in absolute]
    stems = Counter(path.with_suffix("") for path in relative)
    names = [str(p.with_suffix("") if stems[p.with_suffix("")] == 1 else p) for p in relative]
    # x.png beside x.bmp is "x.png" now, and so is x.png.jpg without its suffix.
    return names if len(set(names)) == len(names) else [str(p) for p in relative]


def _write(
    result: Segmentation, output: Path, name: str, image_id: int, source: Path
) -> dict[str, Any]:
    overlay = output / "overlay" / f"{name}.jpg"
    result.save(overlay)
    entry: dict[str, Any] = {
        "id": image_id,
        "file_name": str(source),
        "height": result.size[0],
        "width": result.size[1],
        "overlay": str(overlay.relative_to(output)),
    }
    if result.task != "instance":  # instances overlap: no label picture can hold them
        labels = output / "labels" / f"{name}.png"
        save_picture(result.label_image(), labels)
        entry["labels"] = str(labels.relative_to(output))
    if result.task == "panoptic":
        entry["segments_info"] = result.to_panoptic()[1]
    else:
        entry["annotations"] = result.to_coco(image_id)
    return entry
