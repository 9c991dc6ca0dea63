"""The options of `eomt-deploy triton`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import UsageError
from eomt_deploy.spec import MAX_BATCH

Form = Literal["python", "bls", "ensemble"]
FORMS: tuple[Form, ...] = get_args(Form)
DEVICES = ("cpu", "cuda")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""Names that are valid as a folder and in Triton's addresses."""
DEFAULT_BATCH = 8
MAX_VERSION = 2**31 - 1


def check_form_name(name: str) -> Form:
    """Check the name of a form, and return it.

    Raises:
        UsageError: there is no such form.
    """
    for form in FORMS:
        if form == name:
            return form
    raise UsageError(
        f"There is no form {name!r}.", fix=f"Use {', '.join(FORMS[:-1])} or {FORMS[-1]}."
    )


@dataclass(frozen=True)
class TritonConfig:
    """What is written, and how Triton runs it.

    Attributes:
        models: model files.
        output: folder of the model repository; it may contain other models.
        name: name of the model in Triton; None takes the stem of the file.
        form: ``python`` (one Python model runs everything), ``bls`` (a Python model calls the
            network, which a backend of Triton runs) or ``ensemble`` (Triton runs preprocessing,
            network and postprocessing as three models).
        version: number of the version folder.
        instances: number of processes of each Python model; None takes 1 for ``python``, else 2.
        device: ``cpu`` or ``cuda``; None uses a GPU if there is one.
        backend: backend of eomt-deploy, for ``python`` only; None selects it in the server.
        threads: number of CPU threads of each Python process; None takes the defaults.
        max_batch: maximum number of network inputs (``python``: images) in one call; None takes 8.
        max_queue_delay_us: how long a request waits for others to share its batch, microseconds.
        max_pixels: maximum number of pixels of an image; None takes 100,000,000.
        overwrite: also replace files that eomt-deploy did not write.

    Raises:
        UsageError: a value is out of range, or options conflict.
    """

    models: tuple[Path, ...]
    output: Path
    name: str | None = None
    form: Form = "python"
    version: int = 1
    instances: int | None = None
    device: str | None = None
    backend: str | None = None
    threads: int | None = None
    max_batch: int | None = None
    max_queue_delay_us: int = 0
    max_pixels: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_form_name(self.form)
        if self.device not in (None, *DEVICES):
            raise UsageError(
                f"There is no device {self.device!r}.", fix=f"Use {' or '.join(DEVICES)}."
            )
        if self.backend is not None and self.form != "python":
            raise UsageError(
                f"--backend does not apply to --form {self.form}: Triton's own backend runs the "
                "network.",
                fix="Leave --backend out, or use --form python.",
            )
        ranges = (
            ("version", self.version, 1, MAX_VERSION),
            ("instances", self.instances, 1, 1000),
            ("threads", self.threads, 1, 1024),
            ("max-batch", self.max_batch, 1, MAX_BATCH),
            ("max-queue-delay-us", self.max_queue_delay_us, 0, 60_000_000),
        )
        for option, value, minimum, maximum in ranges:
            if value is not None and not minimum <= value <= maximum:
                raise UsageError(
                    f"--{option} must be between {minimum} and {maximum}, got {value}.",
                    fix=f"Leave --{option} out for the default.",
                )
        check_max_pixels(self.max_pixels)
        if self.name is not None and len(self.models) > 1:
            raise UsageError(
                f"--name {self.name} applies to one model, but there are {len(self.models)}.",
                fix="Run the command once for each model, or leave --name out.",
            )
        names: dict[str, Path] = {}
        for model in self.models:
            name = self.model_name(model)
            if name in names:
                raise UsageError(
                    f"{names[name]} and {model} would both be the model {name}.",
                    fix="Write them in two commands, with --name or another --version.",
                )
            names[name] = model

    @property
    def batch_limit(self) -> int:
        """Maximum number of network inputs (``python``: images) in one call."""
        return self.max_batch or DEFAULT_BATCH

    @property
    def python_instances(self) -> int:
        """Number of processes of each Python model."""
        return self.instances or (1 if self.form == "python" else 2)

    def model_name(self, model: Path) -> str:
        """Name of the model that clients call.

        Raises:
            UsageError: ``--name`` is not valid, or the file name has no valid character.
        """
        name = self.name
        if name is None:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.stem).strip("-._")[:100]
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of a model in Triton.",
                why="A name has at most 100 of the characters A-Z a-z 0-9 _ . - and begins with a "
                "letter or a digit.",
                fix="Pass another --name.",
            )
        return name
