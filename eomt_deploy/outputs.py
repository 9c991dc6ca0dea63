"""Output checks: a command may write new files and replace our own, but not the user's files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from eomt_deploy.errors import ModelFileError, OutputError, UsageError
from eomt_deploy.files import check_writable

MARKER = b"eomt-deploy "
JSON_START = re.compile(rb'\s*\{\s*(?:"info":\s*\{\s*)?"generator":\s*"eomt-deploy ')
"""All our JSON files start with their generator; COCO files have it in ``info``."""
MARKDOWN_START = re.compile(rb"<!-- eomt-deploy ")
HEAD_BYTES = 200


def check_outputs(
    outputs: Mapping[str, Path | None], *, inputs: Iterable[Path | None], overwrite: bool
) -> None:
    """Check before the work that no output destroys an input or a foreign file.

    Args:
        outputs: files that will be written, by the option or name that messages show. Entries that
            are None or ``-`` (stdout) are ignored.
        inputs: files and folders that the command reads. They are never replaced; files in these
            folders are only replaced if eomt-deploy wrote them.
        overwrite: also replace files that eomt-deploy did not write.

    Raises:
        UsageError: an output is an input, or two outputs are the same file.
        OutputError: an output exists and is not ours, or it cannot be written.
    """
    named = {name: path for name, path in outputs.items() if path and str(path) != "-"}
    sources = [path for path in inputs if path]
    places: dict[str, str] = {}
    for name, path in named.items():
        place = os.path.realpath(path)
        if place in places:
            raise UsageError(
                f"{places[place]} and {name} name the same file, {path}.",
                fix="Choose two different files.",
            )
        places[place] = name
        check_output(path, name=name, inputs=sources, overwrite=overwrite)


def check_output(path: Path, *, name: str, inputs: Iterable[Path], overwrite: bool) -> None:
    """As :func:`check_outputs`, for one file."""
    check_writable(path)
    if not path.is_file():  # it does not exist, or is a pipe or a device
        return
    ours = is_ours(path)
    for source in inputs:
        if _is_same(path, source) or (not ours and _is_inside(path, source)):
            raise UsageError(
                f"{name} would replace {path}, which is an input of this command.",
                why="An input is never replaced, not even with --overwrite.",
                fix="Choose another file.",
            )
    if not ours and not overwrite:
        raise not_ours(path, name)


def not_ours(path: Path, name: str) -> OutputError:
    """The error for a file that eomt-deploy did not write."""
    return OutputError(
        f"{name} would replace {path}, which eomt-deploy did not write.",
        fix="Choose another file, move this one away, or pass --overwrite.",
    )


def is_ours(path: Path) -> bool:
    """Whether a file is marked as written by eomt-deploy. Never raises."""
    check = _CHECKS.get(path.suffix.lower())
    try:
        return check is not None and check(path)
    except (
        OSError, ModelFileError, ValueError, SyntaxError, ImportError, zipfile.BadZipFile,
    ):  # fmt: skip
        return False


def _starts(path: Path, pattern: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file:
        return bool(pattern.match(file.read(HEAD_BYTES)))


def _json(path: Path) -> bool:
    """Whether a file is our report or result, or the description beside an engine."""
    from eomt_deploy.sidecar import read_sidecar

    if _starts(path, JSON_START):
        return True
    read_sidecar(path.with_suffix(""))
    return True


def _markdown(path: Path) -> bool:
    return _starts(path, MARKDOWN_START)


def _site(path: Path) -> bool:
    """Whether a file is the page of our site; its first lines name the generator."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="' + MARKER in file.read(HEAD_BYTES)


def _picture(path: Path) -> bool:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG")) as image:
        said = (image.info.get("Software"), image.info.get("comment"))
    return any(MARKER in (s if isinstance(s, bytes) else str(s).encode()) for s in said if s)


def _arrays(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return "generator.npy" in archive.namelist()


def _lines(path: Path) -> bool:
    return _starts(path, JSON_START)


def _video(path: Path) -> bool:
    import av  # without it, a video counts as foreign

    with av.open(str(path), options={"protocol_whitelist": "file"}) as video:
        return any(MARKER in text.encode() for text in video.metadata.values())


def _onnx(path: Path) -> bool:
    from eomt_deploy.model_file import read_onnx_metadata
    from eomt_deploy.spec import METADATA_KEY

    return METADATA_KEY in read_onnx_metadata(path)


def _external_weights(path: Path) -> bool:
    """``m.onnx.data`` belongs to ``m.onnx``."""
    return is_ours(path.with_suffix(""))


def _package(path: Path) -> bool:
    from eomt_deploy.package_metadata import read_metadata
    from eomt_deploy.spec import METADATA_KEY

    return METADATA_KEY in read_metadata(path)


def _xml(path: Path) -> bool:
    from eomt_deploy.model_file import read_xml

    read_xml(path)
    return True


def _openvino_weights(path: Path) -> bool:
    """``m.bin`` belongs to ``m.xml``; without it, it can be anything, e.g. a checkpoint."""
    return is_ours(path.with_suffix(".xml"))


def _core_ml(path: Path) -> bool:
    """Whether a file is the program in our Core ML package."""
    from eomt_deploy.model_file import CORE_ML_MODEL, read_core_ml

    read_core_ml(path.parents[len(CORE_ML_MODEL.parts) - 1])
    return True


def _engine(path: Path) -> bool:
    from eomt_deploy.sidecar import check_plan, read_sidecar

    check_plan(path, read_sidecar(path))
    return True


_CHECKS: Mapping[str, Callable[[Path], bool]] = {
    ".json": _json,
    ".md": _markdown,
    ".html": _site,
    ".png": _picture,
    ".jpg": _picture,
    ".jpeg": _picture,
    ".npz": _arrays,
    ".jsonl": _lines,
    ".mp4": _video,
    ".m4v": _video,
    ".mov": _video,
    ".mkv": _video,
    ".webm": _video,
    ".onnx": _onnx,
    ".data": _external_weights,
    ".pt2": _package,
    ".xml": _xml,
    ".bin": _openvino_weights,
    ".engine": _engine,
    ".pte": _engine,
    ".mlmodel": _core_ml,
}


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # not a file: an address, a name in the catalog, a glob
        return False


def _is_inside(path: Path, folder: Path) -> bool:
    return (
        folder.is_dir() and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents
    )
