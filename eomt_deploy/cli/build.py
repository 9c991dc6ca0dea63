"""`eomt-deploy build`: convert an exported model to the format of a backend.

The options come from the configurations of the backends, so that a new backend adds its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.building import BuildConfig, BuildReport, Option
from eomt_deploy.backends.profiles import find_build_profile, make_config
from eomt_deploy.backends.registry import BACKENDS, builders
from eomt_deploy.cli.console import say, stderr, stdout, timed_steps, warn, write_json
from eomt_deploy.cli.options import Overwrite, model_output, with_options
from eomt_deploy.errors import UsageError
from eomt_deploy.outputs import check_outputs

if TYPE_CHECKING:
    from rich.console import Console


OTHER_ENGINE_SUFFIXES = (".trt", ".plan")
"""Suffixes of TensorRT engines in other tools."""


def build(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The .onnx file that `export` wrote.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=model_output,
            metavar="PATH",
            help="File to write. The suffix selects the format: .engine (TensorRT), .xml "
            "(OpenVINO), .pte (ExecuTorch) or .mlpackage (Core ML). A folder (site/) selects a "
            "site for browsers.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="Backend to build for, if several have this format: tensorrt (this GPU; default) "
            "or tensorrt-rtx (needs no GPU)."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Settings of engines/NAME.toml; options override them.")
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file (- for stdout).")
    ] = None,
    **given: Any,
) -> None:
    """Build a model file for one backend from an exported model."""
    recipe = find_build_profile(profile) if profile else None
    if recipe and recipe.high:
        raise UsageError(
            f"The profile {profile} keeps {', '.join(recipe.high)} in FP32, which must be set at "
            "export, not at build.",
            fix=f"Use it to export: eomt-deploy export CHECKPOINT --profile {profile} -o {output}",
        )
    chosen = choose_target(output, target, recipe.target if recipe else None)
    values = {} if recipe is None else dict(recipe.settings)
    if recipe and recipe.precision:
        values["expect_precision"] = recipe.precision
    for name, option in _options().items():
        if given.get(name) is not None:
            values[name] = option.parse(given[name])
    values["overwrite"] = overwrite
    config = make_config(chosen, model, output, values)
    targets = {**config.outputs, "--json": json}
    check_outputs(targets, inputs=config.inputs, overwrite=overwrite)
    report = run_build(chosen, config, stderr if str(json) == "-" else stdout)
    if json:
        write_json(json, report.to_dict())


def choose_target(output: Path, target: str | None, default: str | None = None) -> str:
    """The backend that builds a file: the requested one, or the first for the suffix.

    Args:
        default: backend of the profile.

    Raises:
        UsageError: no backend builds such files, or the requested one does not.
    """
    able = builders(output.suffix)
    if not able:
        raise UsageError(
            f"{output} has the suffix {output.suffix or '(none)'}, which no backend builds.",
            fix=suffix_fix(output, build_formats()),
        )
    chosen = target or default or able[0]
    if chosen not in able:
        raise UsageError(
            f"{chosen} does not build {BACKENDS[able[0]].formats}.", fix=f"Use {' or '.join(able)}."
        )
    return chosen


def build_formats() -> dict[str, str]:
    """Names of the formats that backends build, by suffix; that of a site is ``/``."""
    return {
        "/" if b.build.folder else b.build.suffix: b.title
        for b in reversed(BACKENDS.values())
        if b.build
    }


def suffix_fix(output: Path, formats: Mapping[str, str]) -> str:
    """The fix for an output file whose suffix is not that of a format.

    Args:
        formats: names of the formats by suffix.
    """
    if output.suffix.lower() in OTHER_ENGINE_SUFFIXES and ".engine" in formats:
        return f"TensorRT engines end with .engine here: use -o {output.with_suffix('.engine')}."
    known = [
        f"{output.with_suffix('')}/ ({title})"
        if suffix == "/"
        else f"{output.with_suffix(suffix)} ({title})"
        for suffix, title in formats.items()
    ]
    return f"Use -o {', '.join(known[:-1])} or {known[-1]}."


def run_build(target: str, config: BuildConfig, console: Console) -> BuildReport:
    """Build with a progress bar, then print warnings and summary."""
    builder = BACKENDS[target].build
    assert builder is not None  # choose_target has checked it
    with timed_steps() as progress:
        report: BuildReport = load(builder.run)(config, progress)
    for warning in report.warnings:
        warn(warning)
    for line in report.lines():
        say(line, console)
    return report


def _options() -> dict[str, Option]:
    """The options of all backends, by field; an option that several have appears once."""
    found: dict[str, Option] = {}
    common = BuildConfig.options()
    for backend in BACKENDS.values():
        if backend.build is not None:
            kind: type[BuildConfig] = load(backend.build.config)
            for name, option in kind.options().items():
                text = "" if name in common else f" For {backend.formats}."
                found.setdefault(name, replace(option, help=option.help + text))
    return found


def _typer_option(option: Option) -> Any:
    flags = f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool else option.flag
    return Annotated[option.type | None, typer.Option(flags, help=option.help)]


def command_options() -> dict[str, Any]:
    """The options of all backends as typer takes them."""
    return {name: _typer_option(option) for name, option in _options().items()}


command = with_options(build, command_options())
