"""The program that writes `docs/support.md`, as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from eomt_deploy.devices import cpu_flags
from eomt_deploy.support.matrix import cells, prospect, regressions
from eomt_deploy.support.trial import try_cells

_path = Path(__file__).parents[1] / "docs" / "support.py"
_specification = importlib.util.spec_from_file_location("support_matrix_page", _path)
support = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(support)


def check(backends, family, precision):
    """Try one cell of each backend, and compare it with the page."""
    wanted = [
        cell for cell in cells(backends, [family])
        if cell.precision == precision and prospect(cell.backend, precision).status[:3] == "can"
    ]  # fmt: skip
    stored, found = support.read(), list(try_cells(wanted))
    assert [finding.cell for finding in found] == wanted
    for now in found:
        run = stored[now.cell.backend]
        same = run["cpu_flags"] == cpu_flags()
        assert not list(regressions(support.findings(run), [now], same_cpu=same))
        assert now.status in ("verified", "builds", "inexact"), now
