"""One compiled package for all tests of this folder, in all test workers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny
from filelock import FileLock

from eomt_deploy.exporting import ExportConfig, export

COMPILED = {"package", "fast_compiler"}
"""Fixtures that run the C++ compiler."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and COMPILED.intersection(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.external)


@pytest.fixture(scope="session")
def fast_compiler() -> AbstractContextManager[Any]:
    """Compile without optimization, and without another compilation that tries the instructions of
    this CPU."""
    from torch._inductor import config  # every worker would import it

    return config.patch(
        {
            "aot_inductor.compile_wrapper_opt_level": "O0",
            "aot_inductor.debug_compile": True,  # the only setting that compiles kernels with -O0
            "cpp.vec_isa_ok": True,
        }
    )


@pytest.fixture(scope="session")
def package(common: Path, files: tiny.Files, request: pytest.FixtureRequest) -> Path:
    path = common / "pt2" / "tiny.pt2"
    with FileLock(common / "pt2.lock"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            config = ExportConfig(
                str(files.checkpoint), path, task="panoptic", classes=files.classes, device="cpu"
            )
            with request.getfixturevalue("fast_compiler"):
                report = export(config)
            assert report.verification.relative_max < 1e-3
            assert report.files == (path,)
    return path
