"""Options that several commands share, and commands whose options are fields of configurations."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from eomt_deploy.drawing import PALETTES
from eomt_deploy.errors import UsageError
from eomt_deploy.model_file import CORE_ML_SUFFIX

SITE_INDEX = "index.html"


def model_output(text: str) -> Path:
    """Path of a model file to write. ``site/``, with a slash, is the site in this folder:
    ``site/index.html``. Without a slash, it can be a file whose suffix was forgotten. A shell adds
    the slash to the name of a Core ML package, too."""
    path = Path(text)
    in_site = text.endswith(("/", os.sep)) and path.suffix.lower() != CORE_ML_SUFFIX
    return path / SITE_INDEX if in_site else path


Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file: .onnx, .engine, .xml, .pt2 or .pte.")
]

Backend = Annotated[
    str | None,
    typer.Option(
        help="Backend by name, e.g. openvino; emulation computes a GPU's low precision on the "
        "CPU (default: selected by file type)."
    ),
]

Device = Annotated[str | None, typer.Option(help="cpu or cuda (default: the best that works).")]

Threads = Annotated[
    int | None, typer.Option(help="Number of CPU threads (default: the backend's choice).")
]

Arithmetic = Annotated[
    str | None,
    typer.Option(
        help="Arithmetic of the layers that are not quantised: fp32, bf16 or fp16; OpenVINO only "
        "(default: the model's; bf16 for INT8 models if the CPU supports it)."
    ),
]

ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        "--score-threshold",
        "--conf",
        help="Minimum score of a segment, 0 to 1 (default: the model's).",
    ),
]

MaskThreshold = Annotated[
    float | None,
    typer.Option(
        help="Minimum mask probability of a pixel, 0 to 1; panoptic only (default: the model's)."
    ),
]

OverlapThreshold = Annotated[
    float | None,
    typer.Option(
        help="Minimum share of its own mask that a segment must keep, 0 to 1; panoptic only "
        "(default: the model's)."
    ),
]

Split = Annotated[str | None, typer.Option(help="Split of the labelled data, e.g. val2017.")]

Limit = Annotated[int | None, typer.Option(help="Maximum number of images (default: all).")]

BaseWeights = Annotated[
    str | None,
    typer.Option(
        help="DINOv3 weights that an official file adds to: folder, file or hf://owner/name."
    ),
]

Insecure = Annotated[bool, typer.Option("--insecure", help="Allow http:// URLs without #sha256=….")]

MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Maximum number of pixels of an image, checked before decoding (default: 100000000)."
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace existing files that eomt-deploy did not write; inputs are never replaced.",
    ),
]

OVERLAY: dict[str, Any] = {
    "alpha": Annotated[
        float | None,
        typer.Option(help="Opacity of the colours of overlays, 0 to 1 (default 0.5)."),
    ],
    "masks": Annotated[bool | None, typer.Option(help="Fill the regions (default) or not.")],
    "outlines": Annotated[bool | None, typer.Option(help="Draw outlines (default) or not.")],
    "boxes": Annotated[bool | None, typer.Option(help="Draw bounding boxes or not (default).")],
    "labels": Annotated[bool | None, typer.Option(help="Write class names (default) or not.")],
    "scores": Annotated[bool | None, typer.Option(help="Write scores (default) or not.")],
    "legend": Annotated[
        bool | None, typer.Option(help="Add a legend at the right or not (default).")
    ],
    "palette": Annotated[
        str | None,
        typer.Option(help=f"Colours of the overlays: {' or '.join(PALETTES)} (default: classes)."),
    ],
    "font_scale": Annotated[
        float | None, typer.Option(help="Factor on the size of the text in overlays (default: 1).")
    ],
}
"""Options of overlays, by the fields of :class:`OverlayStyle`."""

Config = TypeVar("Config")


def with_options(command: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Add options to a command, which receives them as keywords; typer reads its signature.

    Args:
        command: function with ``**given``: the values of the options, None for options that the
            user left out.
        options: ``Annotated[type | None, typer.Option(…)]`` by name.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [p.replace(kind=keyword) for p in own if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(name, keyword, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]

    def run(**values: Any) -> None:
        command(**values)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def options_of(*configs: type) -> dict[str, Any]:
    """The fields of frozen configurations as options; a field that several share appears once.

    A field is ``Annotated[type, typer.Option(…)]``; a tuple is an option that can be repeated.
    """
    found: dict[str, Any] = {}
    for config in configs:
        for name, annotation in get_type_hints(config, include_extras=True).items():
            kind, option = get_args(annotation)
            if get_origin(kind) is tuple:
                kind = list[get_args(kind)[0]]  # type: ignore[misc]
            elif NoneType in get_args(kind):
                kind = next(part for part in get_args(kind) if part is not NoneType)
            found.setdefault(name, Annotated[kind | None, option])
    return found


def fields_of(config: type) -> set[str]:
    """The names of the fields of a dataclass."""
    return {field.name for field in dataclasses.fields(config)}


def make_config(
    kind: type[Config],
    given: Mapping[str, Any],
    mode: str,
    others: Mapping[str, type],
    hints: Mapping[str, str],
) -> Config:
    """Make a configuration from the options that the user passed.

    Args:
        kind: class of the configuration.
        given: values by field, None for options that were left out.
        mode: the option that selects this configuration, for messages.
        others: all configurations by mode, to name those that an option applies to.
        hints: how to fix the use of a field in the wrong mode, if leaving it out is not enough.

    Raises:
        UsageError: an option does not apply to this mode.
    """
    known = fields_of(kind)
    values = {name: value for name, value in given.items() if value not in (None, [])}
    for name in values:
        if name not in known:
            able = [f"--{m}" for m, other in others.items() if name in fields_of(other)]
            raise UsageError(
                f"--{name.replace('_', '-')} does not apply to --{mode}"
                + (f", only to {' and '.join(able)}." if able else "."),
                fix=hints.get(name, "Leave it out."),
            )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
