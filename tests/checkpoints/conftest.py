from __future__ import annotations

import pytest
from web_server import running_server

from eomt_deploy.checkpoints import transfer


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real web server with one file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    with running_server() as behaviour:
        yield behaviour
