"""Import and use of coremltools without its messages: what users must know is collected."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eomt_deploy.backends.backend import Problem
from eomt_deploy.devices import package_version
from eomt_deploy.errors import MissingDependencyError

NAME = "coremltools"


def check_installed() -> str:
    """The version of coremltools.

    Raises:
        MissingDependencyError: it is not installed.
    """
    version = package_version(NAME)
    if version is None:
        raise MissingDependencyError(
            f"{NAME} is not installed.", fix="pip install 'eomt-deploy[coreml]'"
        )
    return version


def problem() -> Problem | str:
    """Why packages cannot be built here, or the version of coremltools."""
    try:
        return check_installed()
    except MissingDependencyError as error:
        return Problem(error.what, error.fix)


def load_quietly() -> None:
    """Import coremltools. On Linux it logs that it cannot run models, and which versions of other
    libraries it was not tested with; we use neither."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools  # noqa: F401
    finally:
        logging.disable(before)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The warnings of a conversion, and no progress bars: `build` has its own."""
    from coremltools.converters.mil.mil.passes import pass_pipeline

    found: list[str] = []
    handler = _Collector(found)
    logger = logging.getLogger(NAME)
    before, bar = logger.propagate, pass_pipeline.tqdm
    logger.addHandler(handler)
    logger.propagate = False
    pass_pipeline.tqdm = _without_bar
    try:
        yield found
    finally:
        pass_pipeline.tqdm = bar
        logger.propagate = before
        logger.removeHandler(handler)


def _without_bar(items: Any, **_: Any) -> Any:
    return items


class _Collector(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{NAME}: {record.getMessage()}"
        if text not in self._found:
            self._found.append(text)
