"""Conversion of an exported model to OpenVINO's .xml and .bin, and choice of its arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eomt_deploy.backends.building import Progress, check_line, no_progress
from eomt_deploy.backends.certification import Check
from eomt_deploy.backends.openvino.built import OpenVinoFile
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.backends.verification import compare
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import DeviceError, MissingDependencyError, OutputError
from eomt_deploy.fields import is_printable
from eomt_deploy.files import staging_folder, through_links
from eomt_deploy.model_file import read_model_file
from eomt_deploy.outputs import check_outputs
from eomt_deploy.precision import computes_in
from eomt_deploy.privacy import import_openvino
from eomt_deploy.sidecar import onnx_sha256
from eomt_deploy.units import counted

MIN_AGREEMENT = 0.995
"""Minimum label agreement for choosing BF16."""
MIN_GAIN = 1.05
"""Minimum speedup for choosing BF16: some CPUs only emulate it."""
TIMED_CALLS = 5


@dataclass(frozen=True)
class Trial:
    """Comparison of BF16 or FP16 with FP32 on this machine.

    Attributes:
        arithmetic: the arithmetic that was compared with FP32.
        agreement: share of equal labels, see
            :attr:`~eomt_deploy.backends.verification.Verification.label_agreement`.
        images: number of images.
        times_as_fast: speedup of the network: ratio of the median times of a few alternating calls.
    """

    arithmetic: str
    agreement: float
    images: int
    times_as_fast: float

    def __str__(self) -> str:
        fast = (
            f"{self.arithmetic} is {self.times_as_fast:.2f} times as fast as fp32 on this machine"
        )
        return (
            f"{fast}, {self.agreement:.3%} of the labels are equal on "
            f"{counted(self.images, 'image')} (minimum: {MIN_AGREEMENT:.1%}, and {MIN_GAIN:g} "
            f"times as fast): {'worth it' if self.worth_it else 'not worth it'}"
        )

    @property
    def worth_it(self) -> bool:
        return self.agreement >= MIN_AGREEMENT and self.times_as_fast >= MIN_GAIN


@dataclass(frozen=True)
class OpenVinoReport:
    """Result of a conversion.

    Attributes:
        files: the .xml and its .bin.
        version: version of OpenVINO.
        precision: precision of the export.
        arithmetic: arithmetic of the unquantised layers.
        trial: comparison that led to the arithmetic; None if none was necessary.
        certificate: comparison with the ONNX model; None with ``--no-check``.
        warnings: warnings for the user, e.g. on skipped images.
    """

    files: tuple[Path, ...]
    version: str
    precision: str
    arithmetic: str
    trial: Trial | None
    certificate: Certificate | None = None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        size = sum(file.stat().st_size for file in self.files)
        yield f"wrote {' + '.join(map(str, self.files))} ({size / 1e6:.1f} MB)"
        types = computes_in(self.precision, self.arithmetic)
        yield f"  OpenVINO {self.version}, {self.precision} model, computes in {types}"
        if self.trial:
            yield f"  {self.trial}"
            if self.arithmetic != self.trial.arithmetic:
                yield f"  To use it anyway: --arithmetic {self.trial.arithmetic}"
        yield f"  {check_line(self.certificate)}"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        return {**asdict(self), "files": [str(file) for file in self.files]}


def build_openvino(config: OpenVinoConfig, progress: Progress = no_progress) -> OpenVinoReport:
    """Convert an exported model, and choose its arithmetic.

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        MissingDependencyError: OpenVINO is not installed.
        DeviceError: this CPU does not support the requested arithmetic.
        OutputError: the output cannot be written.
        VerificationError: the new file does not compute what the ONNX model computes; nothing is
            written.
    """
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise MissingDependencyError(
            "openvino is not installed.", fix="pip install 'eomt-deploy[openvino]'"
        ) from error
    from eomt_deploy.backends.openvino.engine import (
        ARITHMETIC,
        ARITHMETIC_KEY,
        VERSION,
        OpenVinoEngine,
        able,
        open_core,
        read_model,
    )

    config = replace(config, output=through_links(config.output))
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    targets = config.output, config.output.with_suffix(".bin")
    check = Check(config)
    progress("reading the model", None)
    spec = read_model_file(config.onnx).spec
    core = open_core()
    possible = able(core)
    requested = config.arithmetic
    if requested != "auto" and requested not in possible:
        raise DeviceError(
            f"This CPU does not compute in {requested}.",
            fix=f"Use --arithmetic {' or '.join(possible)}, or leave --arithmetic out.",
        )
    exported = ARITHMETIC.get(spec.precision)
    settled = exported if exported in possible else None
    tried = "bf16" if requested == "auto" else requested
    with staging_folder(config.output) as folder:
        model = read_model(core, config.onnx)
        plain = folder / config.output.name
        if is_printable(config.onnx.name):  # others cannot be stored; `verify` asks for --against
            model.set_rt_info(config.onnx.name, ["eomt_deploy", "onnx"])
        model.set_rt_info(onnx_sha256(config.onnx), ["eomt_deploy", "onnx_sha256"])

        def save(arithmetic: str) -> None:
            model.set_rt_info(arithmetic, ARITHMETIC_KEY)
            try:
                openvino.save_model(model, plain, compress_to_fp16=False)
            except RuntimeError as error:
                raise OutputError(
                    f"OpenVINO could not write {config.output}: {error}.",
                    fix="Choose a writable folder with enough free space.",
                ) from error

        progress("converting", None)
        chosen = (settled or "fp32") if requested == "auto" else requested
        trial = None
        save(chosen)
        compare = tried not in ("fp32", settled) and (requested != "auto" or not settled)
        if compare and tried in possible:
            images = check.images(spec)
            progress(f"trying {tried} on {counted(len(images), 'image')}", None)
            trial = try_arithmetic(plain, tried, images)
            if requested == "auto" and trial.worth_it:
                chosen = tried
                save(chosen)
        certificate = check.run(partial(OpenVinoEngine, plain, cache=False), progress)
        if certificate:
            OpenVinoFile(plain).save(certificate)
        try:
            # The old .xml is removed first and the new one is put in place last, so that an .xml
            # never exists beside the .bin of another model.
            config.output.unlink(missing_ok=True)
            for target in reversed(targets):
                (folder / target.name).replace(target)
        except OSError as error:
            raise OutputError(
                f"{config.output} cannot be replaced: {error.strerror}.",
                fix="Close programs that have the old file open, and build again.",
            ) from error
    return OpenVinoReport(
        targets, VERSION, spec.precision, chosen, trial, certificate, tuple(check.notes)
    )


def try_arithmetic(model: Path, arithmetic: Any, images: Sequence[Path]) -> Trial:
    """Compare the labels and the time of another arithmetic with FP32 on this machine."""
    from eomt_deploy.backends.openvino.engine import OpenVinoEngine

    first, second = (
        OpenVinoEngine(model, arithmetic=kind, cache=False) for kind in ("fp32", arithmetic)
    )
    with first, second:
        result = compare(second, first, images)
        agreement = 0.0 if result.not_finite else result.label_agreement
        batch = np.zeros((first.spec.batch or 1, *first.spec.image_size, 3), np.uint8)
        times = alternate(partial(first.run, batch), partial(second.run, batch))
    return Trial(arithmetic, agreement, len(images), times)


def alternate(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Speedup of the second function: ratio of the medians of a few alternating calls."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_CALLS + 1):
        for function, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0][1:]) / np.median(times[1][1:]))  # the first call warms up
