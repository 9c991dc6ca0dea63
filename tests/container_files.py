"""The files in `docker/`, and what all of them must agree on."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
USER = "10001"
HTTP, GRPC = 8000, 8001


def read(name: str) -> str:
    return (DOCKER / name).read_text(encoding="utf-8")
