"""A result in the formats that a client can request."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from eomt_deploy.classes import find_classes
from eomt_deploy.errors import UsageError
from eomt_deploy.files import JPEG_MAX_SIDE
from eomt_deploy.result import Segmentation
from eomt_deploy.serving.work import FORMATS, Options

OVERLAY_QUALITY = 90
"""JPEG quality of overlays."""
MAX_DIGITS = 9
"""Maximum number of digits of a class id."""


def encode(result: Segmentation, options: Options) -> tuple[bytes, str]:
    """Write a result in the requested format.

    Returns:
        the content and its media type.

    Raises:
        UsageError: the format is unknown or does not fit the task, or there is no such class.
    """
    if options.format not in FORMATS:
        raise UsageError(
            f"There is no format {options.format!r}.", fix=f"Use one of {', '.join(FORMATS)}."
        )
    if options.classes:
        names = {info.name for info in result.classes}
        wanted = [
            int(c) if c.isdecimal() and len(c) <= MAX_DIGITS and c not in names else c
            for c in options.classes
        ]
        result = result.filter(classes=sorted(find_classes(result.classes, wanted)))
    return _content(result, options), FORMATS[options.format]


def _content(result: Segmentation, options: Options) -> bytes:
    match options.format:
        case "rle":
            return result.to_json(masks="rle").encode()
        case "polygons":
            return result.to_json(options.tolerance).encode()
        case "coco":
            return _json(_coco(result))
        case "panoptic":
            return _json(_panoptic(result))
        case "png":
            if result.task == "instance":
                raise UsageError(
                    "The masks of instances overlap, so one PNG file cannot contain them.",
                    fix="Use format rle, polygons, coco or overlay.",
                )
            return _picture(result.label_image(), "PNG")
        case _:
            if max(result.size) > JPEG_MAX_SIDE:
                raise UsageError(
                    f"A JPEG can have {JPEG_MAX_SIDE} pixels per side, this image has more.",
                    fix="Use format rle, polygons, coco or png.",
                )
            return _picture(result.overlay(), "JPEG", quality=OVERLAY_QUALITY)


def _coco(result: Segmentation) -> dict[str, Any]:
    """A COCO data set of one image."""
    annotations = [{"id": i, **a} for i, a in enumerate(result.to_coco(image_id=1), 1)]
    return {
        "images": [{"id": 1, "height": result.size[0], "width": result.size[1]}],
        "categories": _categories(result),
        "annotations": annotations,
    }


def _panoptic(result: Segmentation) -> dict[str, Any]:
    """COCO's panoptic format; the PNG image is in base64, since JSON has no bytes."""
    picture, segments_info = result.to_panoptic()
    return {
        "size": list(result.size),
        "categories": _categories(result),
        "segments_info": segments_info,
        "png": base64.b64encode(_picture(picture, "PNG")).decode(),
    }


def _categories(result: Segmentation) -> list[dict[str, Any]]:
    return [{"id": c.id, "name": c.name, "isthing": int(c.thing)} for c in result.classes]


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


def _picture(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
