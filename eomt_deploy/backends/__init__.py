"""Engines run models on tensors. Backends are table entries; only the selected one is imported."""

from eomt_deploy.backends.backend import Backend
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.registry import BACKENDS, choose_backend, open_engine

__all__ = ["BACKENDS", "Backend", "Engine", "choose_backend", "open_engine"]
