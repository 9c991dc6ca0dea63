"""One compiled package for all tests of this folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny

from eomt_deploy.exporting import ExportConfig, export


@pytest.fixture(scope="session")
def fast_compiler() -> AbstractContextManager[Any]:
    """Compile without optimization, which takes less time."""
    from torch._inductor import config  # every worker would import it

    return config.patch(
        {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.debug_compile": True}
    )


@pytest.fixture(scope="session")
def package(
    tmp_path_factory: pytest.TempPathFactory,
    files: tiny.Files,
    fast_compiler: AbstractContextManager[Any],
) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "tiny.pt2"
    config = ExportConfig(
        str(files.checkpoint), path, task="panoptic", classes=files.classes, device="cpu"
    )
    with fast_compiler:
        report = export(config)
    assert report.verification.relative_max < 1e-3
    assert report.files == (path,)
    return path
