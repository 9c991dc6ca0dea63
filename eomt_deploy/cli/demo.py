"""`eomt-deploy demo`: export and run the embedded model on the drawn scenes of the package."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from eomt_deploy.cli import export as exporting
from eomt_deploy.cli import predict as predicting
from eomt_deploy.cli.console import say, warn
from eomt_deploy.cli.options import Overwrite
from eomt_deploy.data_files import folder as data_folder
from eomt_deploy.drawing import has_display
from eomt_deploy.units import time_text

MODEL = "eomt-tiny-scenes"


def demo(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for the model and the results."),
    ] = Path("eomt-demo"),
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the first overlay in an image viewer.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export the embedded model, segment six drawn scenes and open an overlay.

    Nothing is downloaded. The model was trained on such computer-drawn scenes, and these six are
    among those that it segments well, so they show how eomt-deploy works, not how accurate EoMT
    is. The demo prints the commands that it runs.
    """
    started = time.monotonic()
    model, results = output / "tiny.onnx", output / "out"
    scenes = data_folder("examples") / "scenes"
    _say_command("export", MODEL, "-o", model)
    exporting.export(MODEL, model, overwrite=overwrite)
    _say_command("predict", model, scenes, "-o", results)
    predicting.predict(model, [str(scenes)], results, overwrite=overwrite)
    overlays = sorted((results / "overlay").iterdir())
    took = time_text(time.monotonic() - started)
    say(f"\n{len(overlays)} overlays in {results / 'overlay'}, after {took}")
    if no_open:
        return
    viewer = find_viewer(sys.platform, os.environ)
    if viewer is None:
        say(f"There is no display; open {overlays[0]} in an image viewer.")
    else:
        open_with(viewer, overlays[0])


def find_viewer(platform: str, environment: Mapping[str, str]) -> list[str] | None:
    """The command that opens an image on this system; None without a display."""
    if platform == "win32":
        return ["cmd", "/c", "start", ""]
    if platform == "darwin":
        return ["open"]
    if not has_display(platform, environment):
        return None
    program = shutil.which("xdg-open", path=environment.get("PATH"))
    return [program] if program else None


def open_with(viewer: list[str], image: Path) -> None:
    """Open an image without waiting for the viewer; a viewer that fails is only a warning."""
    try:
        subprocess.Popen(
            [*viewer, str(image.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        warn(f"{image} cannot be opened with {viewer[0]}: {error.strerror}.")


def _say_command(*words: object) -> None:
    say(f"$ {shlex.join(['eomt-deploy', *map(str, words)])}")
