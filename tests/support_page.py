"""The program that writes `docs/support.md`, as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "docs" / "support.py"
_specification = importlib.util.spec_from_file_location("support_matrix_page", _path)
support = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(support)
