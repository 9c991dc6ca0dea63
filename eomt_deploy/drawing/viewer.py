"""Show a picture: in the notebook, or in the image viewer of the system."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from PIL import Image

from eomt_deploy.errors import MissingDependencyError

SAVE = 'Write the overlay to a file: result.save("overlay.png").'


def show_picture(picture: Image.Image) -> None:
    """Draw a picture under the cell of a notebook; elsewhere open it in an image viewer.

    Raises:
        MissingDependencyError: there is no display, or no image viewer.
    """
    if _in_notebook():
        from IPython.display import display

        display(picture)  # type: ignore[no-untyped-call]
        return
    # Without a display, xdg-open fails after Pillow has reported success.
    if not has_display(sys.platform, os.environ):
        raise MissingDependencyError("This machine has no display.", fix=SAVE)
    from PIL import ImageShow  # imports IPython, if it is installed

    if not ImageShow.show(picture):
        raise MissingDependencyError("No image viewer was found on this machine.", fix=SAVE)


def has_display(platform: str, environment: Mapping[str, str]) -> bool:
    """Whether a window can be opened on this system."""
    if platform in ("win32", "darwin"):
        return True
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def _in_notebook() -> bool:
    """Whether a kernel runs this program; a terminal with IPython has none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
