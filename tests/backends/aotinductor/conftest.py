"""One compiled package for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from eomt_deploy.exporting import ExportConfig, export


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, files: tiny.Files) -> Path:
    from torch._inductor import config as inductor  # every worker would import it

    path = tmp_path_factory.mktemp("pt2") / "tiny.pt2"
    config = ExportConfig(
        str(files.checkpoint), path, task="panoptic", classes=files.classes, device="cpu"
    )
    # Without optimization, it compiles faster.
    fast = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.debug_compile": True}
    with inductor.patch(fast):
        report = export(config)
    assert report.verification.relative_max < 1e-3
    assert report.files == (path,)
    return path
