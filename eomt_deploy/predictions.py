"""The output folder of a run: overlays, labels, and one JSON file in COCO's format."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eomt_deploy.addresses import without_secrets
from eomt_deploy.closing import Closing
from eomt_deploy.drawing import OverlayStyle
from eomt_deploy.errors import OutputError
from eomt_deploy.files import (
    GENERATOR,
    JPEG_MAX_SIDE,
    overlay_suffix,
    save_picture,
    write_atomically,
)
from eomt_deploy.journal import Journal, JournalWriter, read_records, stamp
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec
from eomt_deploy.web import file_name

OVERLAYS, LABELS, SUMMARY = "overlay", "labels", "predictions.json"
PLACES = (OVERLAYS, LABELS, SUMMARY)
Source = Path | str
"""An image file, or the http(s) address of an image."""


class PredictionFolder(Closing):
    """A folder that a run writes its results to; finished results are kept if the run stops.

    Args:
        folder: the output folder.
        spec: the model's description.
        style: how the overlays are drawn.

    Call :meth:`start` once, then :meth:`write` for each result and :meth:`finish` at the end.
    """

    def __init__(self, folder: Path, spec: ModelSpec, style: OverlayStyle | None = None) -> None:
        self.folder = folder
        self._style = style
        self.done: dict[str, str] = {}
        """Results of an earlier run that are kept: source -> name."""
        self._spec = spec
        self._journal = Journal.read(folder, PLACES)
        self._writer: JournalWriter | None = None

    def is_done(self, source: Source) -> bool:
        """Whether the results of an image exist already and are kept."""
        return identity(source) in self.done

    def is_result(self, path: Path) -> bool:
        """Whether a file is a result that an earlier run wrote into this folder."""
        with suppress(ValueError):
            relative = Path(os.path.abspath(path)).relative_to(os.path.abspath(self.folder))
            return self._journal.is_ours(relative.as_posix())
        return False

    def start(
        self,
        names: Mapping[Source, str],
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
    ) -> int:
        """Remove the results of an earlier run, or keep them with ``resume``.

        Args:
            names: image -> name of its results, see :func:`output_names`.
            settings: settings that the results depend on, JSON-serialisable.
            resume: keep the results of an earlier run with the same settings.
            overwrite: also replace files that eomt-deploy did not write.

        Returns:
            number of removed files.

        Raises:
            OutputError: the folder contains foreign files where results are written.
            UsageError: ``resume`` is set, and the earlier run had other settings.
        """
        journal = self._journal
        if not overwrite:
            journal.check_foreign()
        if resume:
            journal.check_settings(settings)
            self.done = self._finished({identity(p): name for p, name in names.items()})
            removed = journal.remove_files(self._files_of_others())
        else:
            removed = journal.remove_files()
        self._writer = JournalWriter(self.folder, settings, self._kept())
        return removed

    def _finished(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Source -> name of the results that are complete and would get the same names again."""
        taken = {name: source for source, name in wanted.items()}
        found = {}
        for record in self._records():
            source, name = str(record["source"]), str(record["name"])
            fits = taken.get(name, source) == source and wanted.get(source, name) == name
            unchanged = record.get("stamp") == list(_stamp(source))
            if fits and unchanged and all(map(self._journal.is_ours, record["files"])):
                found[source] = name
        return found

    def _files_of_others(self) -> list[str]:
        """Our files that do not belong to a kept result."""
        kept = {name for record in self._kept() for name in record["files"]}
        known = (*self._journal.files, *self._journal.unfinished)
        return [name for name in known if name not in kept]

    def _kept(self) -> Iterator[dict[str, Any]]:
        return (record for record in self._records() if record["source"] in self.done)

    def _records(self) -> Iterator[dict[str, Any]]:
        return (r for r in read_records(self.folder) if {"source", "name", "files"} <= r.keys())

    def write(self, result: Segmentation, name: str, source: Source) -> str | None:
        """Write overlay and labels of one image.

        Args:
            result: its result.
            name: name of its files, without folder and suffix.
            source: the image file, or its address.

        Returns:
            a remark for the user about these files, or None.

        Raises:
            OutputError: a file cannot be written.
        """
        assert self._writer is not None  # start() comes first
        overlay = result.overlay(style=self._style)
        overlay_name = f"{OVERLAYS}/{name}{overlay_suffix(overlay)}"
        image: dict[str, Any] = {
            "file_name": without_secrets(str(source)),
            "height": result.size[0],
            "width": result.size[1],
            "overlay": overlay_name,
        }
        pictures = {overlay_name: overlay}
        if result.task != "instance":  # instances overlap: no label image can hold them
            image["labels"] = f"{LABELS}/{name}.png"
            pictures[image["labels"]] = result.label_image()
        self._writer.announce(pictures)
        for file, picture in pictures.items():
            save_picture(picture, self.folder / file)
        self._writer.record(
            pictures,
            source=identity(source),
            stamp=_stamp(identity(source)),
            name=name,
            image=image,
            annotations=_annotations(result, f"{name}.png"),
        )
        if overlay_name.endswith(".jpg"):
            return None
        shown = without_secrets(str(source))
        return (
            f"the overlay of {shown} has {overlay.width}x{overlay.height} pixels, more than the "
            f"JPEG maximum of {JPEG_MAX_SIDE} per side, so it was written as {overlay_name}"
        )

    def finish(self) -> None:
        """Write predictions.json with all finished results."""
        assert self._writer is not None  # start() comes first
        self._writer.announce([SUMMARY])
        write_atomically(self.folder / SUMMARY, (part.encode() for part in self.summary()))
        self._writer.record([SUMMARY])

    def summary(self) -> Iterator[str]:
        """Yield predictions.json in parts, since all results may not fit into memory.

        The format is COCO's (https://cocodataset.org/#format-data): the panoptic format for a
        panoptic model, otherwise the format of instance annotations. Ids count from 1; categories
        have the class ids of the model.
        """
        spec = self._spec
        info = {
            "generator": GENERATOR,
            "model": spec.name,
            "task": spec.task,
            "checkpoint_sha256": spec.provenance.get("checkpoint_sha256"),
        }
        categories = [
            {"id": c.id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
            for c in spec.classes
        ]
        yield '{"info": ' + json.dumps(info) + ',\n"categories": ' + json.dumps(categories)
        yield ',\n"images": ['
        for image_id, record in enumerate(self._results(), 1):
            entry = {"id": image_id, **record["image"]}
            yield (",\n " if image_id > 1 else "\n ") + json.dumps(entry, allow_nan=False)
        yield '\n],\n"annotations": ['
        count = 0
        for image_id, record in enumerate(self._results(), 1):
            for annotation in record["annotations"]:
                count += 1
                entry = {"id": count, **annotation, "image_id": image_id}
                yield (",\n " if count > 1 else "\n ") + json.dumps(entry, allow_nan=False)
        yield "\n]}\n"

    def _results(self) -> Iterator[dict[str, Any]]:
        return (record for record in self._records() if "image" in record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _annotations(result: Segmentation, label_file: str) -> list[dict[str, Any]]:
    """COCO annotations without ids: one per image (panoptic), or one per region."""
    if result.task == "panoptic":
        return [{"file_name": label_file, "segments_info": result.to_panoptic()[1]}]
    return result.to_coco()


def identity(source: Source) -> str:
    """The absolute path of a file; of an address, what is not secret and a hash of the rest."""
    if isinstance(source, Path):
        return os.path.abspath(source)
    return f"{without_secrets(source)}#{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def _stamp(identity: str) -> tuple[int, ...]:
    """Size and time of a file; empty if there is none, e.g. for an address."""
    return stamp(Path(identity)) or ()


def output_names(sources: Sequence[Source]) -> dict[Source, str]:
    """Image -> name of its results inside the output folder, without duplicates.

    ``x.jpg`` becomes ``x``; images that would get the same name all keep their suffix. Addresses
    get the last part of their path.
    """
    files = _file_names([source for source in sources if isinstance(source, Path)])
    return _distinct(
        {
            source: files[source] if isinstance(source, Path) else Path(file_name(source)).stem
            for source in sources
        }
    )


def _file_names(paths: Sequence[Path]) -> dict[Path, str]:
    # abspath, not resolve: "a/../b" must not lead out of the output folder, but a linked image
    # keeps the name of the link.
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if not absolute:
        return {}
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    relative = [path.relative_to(common) for path in absolute]
    stems = Counter(path.with_suffix("") for path in relative)
    names = [p.with_suffix("") if stems[p.with_suffix("")] == 1 else p for p in relative]
    # x.png beside x.bmp is named "x.png" now, and so is x.png.jpg.
    unique = names if len(set(names)) == len(names) else relative
    return {path: name.as_posix() for path, name in zip(paths, unique, strict=True)}


def _distinct(names: dict[Source, str]) -> dict[Source, str]:
    """Images of different servers can have the same name: the second becomes ``name (2)``."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    for source, name in names.items():
        own = name
        while own in taken:
            numbers[name] += 1
            own = f"{name} ({numbers[name] + 1})"
        names[source] = own
        taken.add(own)
    return names


def is_about_one_image(error: OutputError) -> bool:
    """Whether other results can still be written after this error."""
    import errno

    cause = error.__cause__
    of_name = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
    return not isinstance(cause, OSError) or cause.errno in of_name
