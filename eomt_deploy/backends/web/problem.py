"""Whether this machine can build sites."""

from __future__ import annotations

from eomt_deploy.backends.backend import Problem
from eomt_deploy.backends.web.files import wasm_library
from eomt_deploy.backends.web.runtime import PACKAGE, VERSION, can_download
from eomt_deploy.errors import MissingDependencyError


def problem() -> Problem | str:
    """Why sites cannot be built here, or the version of ONNX Runtime Web."""
    try:
        wasm_library()
    except MissingDependencyError as error:
        return Problem(error.what, error.fix)
    if not can_download():
        return Problem(f"npm, which downloads {PACKAGE}, is not installed", "Install Node.js.")
    return VERSION
