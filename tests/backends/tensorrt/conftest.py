from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hand_made
import pytest

from eomt_deploy.backends.tensorrt.config import TensorRtConfig


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., TensorRtConfig]:
    """Make the TensorRT-RTX configuration of a hand-made model."""

    def get(*, options: dict | None = None, **model: object) -> TensorRtConfig:
        path = hand_made.write(tmp_path / "made.onnx", **model)  # type: ignore[arg-type]
        config = {"target": "tensorrt-rtx", "compute_capabilities": ("8.9",)} | (options or {})
        return TensorRtConfig(path, tmp_path / "out" / "made.engine", **config)

    return get
