"""One row per image: its result, or the error that prevented it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from eomt_deploy.addresses import without_secrets
from eomt_deploy.batch.places import Place
from eomt_deploy.errors import ImageError
from eomt_deploy.files import encode_picture, overlay_suffix
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import RgbImage
from eomt_deploy.web import file_name

LABELS, OVERLAYS = "labels", "overlays"
MAX_NAME = 80
"""Maximum number of characters of the image's name in the name of a picture."""


@dataclass(frozen=True)
class Done:
    """An image whose processing has ended.

    Attributes:
        index: its position in the list of all images.
        path: its path or address.
        outcome: its result, without the image, or the error.
        milliseconds: time to prepare the image, to run the network, and to compute the result.
    """

    index: int
    path: str
    outcome: Segmentation | ImageError
    milliseconds: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pictures:
    """The pictures that are written beside the shards."""

    labels: bool = False
    overlays: bool = False


def shown(path: str) -> str:
    """A path as text that can be stored and printed, without secrets."""
    return without_secrets(path).encode(errors="backslashreplace").decode()


def make_row(
    done: Done, shard: int, place: Place, pictures: Pictures, pixels: RgbImage | None
) -> dict[str, Any]:
    """Write the pictures of an image, and return its row.

    Args:
        pixels: the image, uint8 RGB [H, W, 3]; only needed for an overlay.

    Raises:
        OutputError: a picture cannot be written.
    """
    row: dict[str, Any] = {
        "index": done.index, "path": shown(done.path), "height": None, "width": None,
        "segments": [], "labels": None, "overlay": None, "prepare_ms": None, "network_ms": None,
        "finish_ms": None, "error": None, "error_id": None,
    }  # fmt: skip
    result = done.outcome
    if isinstance(result, ImageError):
        return row | {"error": str(result), "error_id": result.id}
    row["height"], row["width"] = result.size
    row["segments"] = result.to_dict(masks="rle")["segments"]
    row["prepare_ms"], row["network_ms"], row["finish_ms"] = done.milliseconds
    name = picture_name(done, shard)
    if pictures.labels:
        row["labels"] = f"{LABELS}/{name}.png"
        _write(place, row["labels"], result.label_image())
    if pictures.overlays and pixels is not None:
        overlay = replace(result, image=pixels).overlay()
        row["overlay"] = f"{OVERLAYS}/{name}{overlay_suffix(overlay)}"
        _write(place, row["overlay"], overlay)
    return row


def picture_name(done: Done, shard: int) -> str:
    """The name of the pictures of an image: unique, and the same each time.

    Each shard has its own folder, since a folder with very many files is slow.
    """
    last = file_name(done.path) if "://" in done.path else done.path.rpartition("/")[2]
    stem = re.sub(r"[^\w.-]+", "_", PurePosixPath(last).stem, flags=re.ASCII)[:MAX_NAME]
    return f"{shard:09d}/{done.index:012d}-{stem}"


def _write(place: Place, name: str, picture: Any) -> None:
    place.write(name, encode_picture(picture, PurePosixPath(name)))  # type: ignore[arg-type]
